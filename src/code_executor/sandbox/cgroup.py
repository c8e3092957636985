"""Control groups, v1 and v2: the limits, the counters and the last kill of a sandbox.

Theory of operation. A service owns one directory per hierarchy (:class:`Tree`) and holds a lock on
it (flock(2) on the directory itself) for as long as it lives. In it each sandbox has one directory
of its own name. The launcher writes init's pid, and a zygote's child its own, into ``cgroup.procs``
files that the service has opened; nothing else needs to see the file system. When a sandbox is gone
its directories are removed.
Directories that nobody holds a lock on are a dead service's, and are swept at the next start. (A
process id would not tell: services in different pid namespaces may share the hierarchy.)

v2 has one hierarchy with all controllers; v1 has one each for memory, pids and cpuacct (mounted
together or apart). What differs between them is in the two :class:`_Files` tables only.

Source of every file's meaning: the kernel's Documentation/admin-guide/cgroup-v1 and cgroup-v2.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from code_executor.errors import HostUnfit, SandboxUnavailable

PREFIX = "code-executor-"
CONTROLLERS_V1 = ("memory", "pids", "cpuacct")
CONTROLLERS_V2 = ("memory", "pids", "cpu")
SOCKETS_V1_BYTES = 32 * 1024 * 1024  # beside the memory limit; plenty for a client and a server
_USAGE = "/cpuacct.usage"


@dataclass(frozen=True, slots=True)
class Mounts:
    """Where the hierarchies are: controller to directory (all the same one on v2)."""

    version: int
    directories: dict[str, Path]

    @property
    def distinct(self) -> tuple[Path, ...]:
        """Each directory once; cpu and cpuacct, say, may share one."""
        return tuple(dict.fromkeys(self.directories.values()))


def _mount_lines() -> Iterator[tuple[str, str, set[str]]]:
    """Mount point, type and options of each mount of this process."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, options, *_ = line.split()
        yield point, kind, set(options.split(","))


def _own_groups() -> dict[str, str]:
    """This process's cgroup per controller; the v2 one under the empty name."""
    groups = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        groups.update(dict.fromkeys(controllers.split(","), path))
    return groups


def find_mounts() -> Mounts:
    """The hierarchies of this host that have the controllers needed.

    Raises:
        HostUnfit: neither v2 nor v1 has them.
    """
    v1: dict[str, Path] = {}
    v2: Path | None = None
    for point, kind, options in _mount_lines():
        if kind == "cgroup2":
            v2 = v2 or Path(point)
        elif kind == "cgroup":
            v1.update({c: Path(point) for c in CONTROLLERS_V1 if c in options and c not in v1})
    if v2 is not None and set(CONTROLLERS_V2) <= set(_controllers(v2)):
        return Mounts(2, dict.fromkeys(CONTROLLERS_V2, v2))
    if len(v1) == len(CONTROLLERS_V1):
        return Mounts(1, v1)
    raise HostUnfit(
        "no cgroup hierarchy with the memory, pids and cpu controllers is mounted",
        fix="mount -t cgroup2 none /sys/fs/cgroup",
    )


def _controllers(directory: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return (directory / "cgroup.controllers").read_text().split()
    return []


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _read(path: str) -> str:
    """A control file; all those read here are far shorter than a page."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096).decode()
    finally:
        os.close(fd)


def _fields(text: str) -> dict[str, int]:
    """A flat-keyed file: a name and a number a line."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


class Group:
    """One sandbox's cgroup. Methods are a few small file operations each and do not block long.

    They are in the way of every run, so they use plain strings and descriptors, not ``Path``.
    """

    def __init__(self, mounts: Mounts, paths: dict[str, Path]) -> None:
        self._v2 = mounts.version == 2
        self._mounts = mounts.directories
        self._paths = {controller: str(path) for controller, path in paths.items()}
        self._distinct = tuple(dict.fromkeys(self._paths.values()))
        self._cpu_fd = -1
        self._limits = (0, 0)

    @property
    def path(self) -> str:
        """Its path in the hierarchies, the same in each, as an OCI runtime wants to know it."""
        controller, mount = next(iter(self._mounts.items()))
        return f"/{os.path.relpath(self._paths[controller], mount)}"

    def make(self, *, memory_bytes: int, processes: int) -> None:
        """Create the directories and set the limits."""
        for path in self._distinct:
            os.mkdir(path)
        self.limit(memory_bytes=memory_bytes, processes=processes)
        if not self._v2:
            self._limit_sockets_v1()
        self.open_counters()

    def open_counters(self) -> None:
        """Begin to read a group that is there; one that somebody else has made, too."""
        name = f"{self._paths['cpu']}/cpu.stat" if self._v2 else self._paths["cpuacct"] + _USAGE
        self._cpu_fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)

    def limit(self, *, memory_bytes: int, processes: int) -> None:
        """Set the limits; swap is none. May be called again to change them.

        v2 could kill the whole group at once (memory.oom.group), but init is in it, and is needed
        to report what the program left; the watch ends such a run instead.
        """
        if (memory_bytes, processes) == self._limits:
            return
        memory = self._paths["memory"]
        _write(f"{self._paths['pids']}/pids.max", str(processes))
        if not self._v2:
            self._limit_v1(memory, str(memory_bytes))
        else:
            _write(f"{memory}/memory.max", str(memory_bytes))
            with contextlib.suppress(FileNotFoundError):
                _write(f"{memory}/memory.swap.max", "0")
        self._limits = (memory_bytes, processes)

    def _limit_v1(self, memory: str, text: str) -> None:
        both = [f"{memory}/memory.limit_in_bytes", f"{memory}/memory.memsw.limit_in_bytes"]
        # memory+swap may never be below memory: the order depends on the direction of the change.
        for attempt in (both, both[::-1]):
            try:
                for path in attempt:
                    with contextlib.suppress(FileNotFoundError):  # no swap accounting
                        _write(path, text)
            except OSError:
                continue
            return
        raise SandboxUnavailable("the memory limit could not be set", step="memory limit")

    def _limit_sockets_v1(self) -> None:
        """v1 counts what waits in sockets only where that has a limit; v2 counts it as memory."""
        with contextlib.suppress(FileNotFoundError):  # a kernel without either
            path = f"{self._paths['memory']}/memory.kmem.tcp.limit_in_bytes"
            _write(path, str(SOCKETS_V1_BYTES))

    def files(self, name: str) -> list[str]:
        """The paths of a control file in each hierarchy."""
        return [f"{path}/{name}" for path in self._distinct]

    def procs(self) -> list[int]:
        """``cgroup.procs`` of each hierarchy, opened for writing; the caller closes them."""
        return [os.open(path, os.O_WRONLY | os.O_CLOEXEC) for path in self.files("cgroup.procs")]

    def cpu_us(self) -> int:
        """CPU time of all processes that ever were in it, microseconds."""
        text = os.pread(self._cpu_fd, 512, 0)
        if not self._v2:
            return int(text) // 1000
        return _fields(text.decode())["usage_usec"]

    def oom_kills(self) -> int:
        """How many processes the kernel has ended here for memory."""
        name = "memory.events" if self._v2 else "memory.oom_control"
        return _fields(_read(f"{self._paths['memory']}/{name}")).get("oom_kill", 0)

    def refused_processes(self) -> int:
        """How often the kernel has refused a new process or thread here."""
        with contextlib.suppress(FileNotFoundError):  # v1 before Linux 4.8
            return _fields(_read(f"{self._paths['pids']}/pids.events")).get("max", 0)
        return 0

    def peak_bytes(self) -> int | None:
        """The highest memory use so far; ``None`` on v2 before Linux 5.19."""
        name = "memory.peak" if self._v2 else "memory.max_usage_in_bytes"
        try:
            return int(_read(f"{self._paths['memory']}/{name}"))
        except FileNotFoundError:
            return None

    def pids(self) -> set[int]:
        """The processes in it now, as this process's pid namespace numbers them."""
        found: set[int] = set()
        for path in self._distinct:
            with contextlib.suppress(FileNotFoundError):
                found.update(map(int, Path(path, "cgroup.procs").read_text().split()))
        found.discard(0)  # a process of a foreign pid namespace
        return found

    def kill(self) -> None:
        """End every process in it; v2's ``cgroup.kill`` where there is one."""
        with contextlib.suppress(OSError):
            if self._v2:
                _write(f"{self._distinct[0]}/cgroup.kill", "1")
                return
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def close_counters(self) -> None:
        """Let go of what :meth:`open_counters` opened. Idempotent."""
        if self._cpu_fd >= 0:
            os.close(self._cpu_fd)
            self._cpu_fd = -1

    def remove(self) -> bool:
        """Remove the directories; ``False`` when something is still in one of them."""
        self.close_counters()
        gone = True
        for path in self._distinct:
            try:
                os.rmdir(path)
            except FileNotFoundError:
                continue
            except OSError:
                gone = False
        return gone


class Tree:
    """The directory of this service in each hierarchy, and the groups in it."""

    def __init__(self, mounts: Mounts, bases: dict[str, Path], name: str) -> None:
        self._mounts = mounts
        self._bases = bases
        self._paths = {controller: base / name for controller, base in bases.items()}
        self._locks: list[int] = []

    @property
    def name(self) -> str:
        """The name of its directories, no two services' alike."""
        return next(iter(self._paths.values())).name

    @property
    def version(self) -> int:
        """1 or 2."""
        return self._mounts.version

    @classmethod
    def open(cls) -> Tree:
        """Find the hierarchies, sweep what dead services left, make this service's directories.

        Raises:
            HostUnfit: no controllers, or no right to make directories; says what to do.
        """
        mounts = find_mounts()
        bases = _bases(mounts)
        sweep(bases.values())
        tree = cls(mounts, bases, f"{PREFIX}{secrets.token_hex(6)}")
        tree._make()
        return tree

    def _make(self) -> None:
        for base, path in dict(
            zip(self._bases.values(), self._paths.values(), strict=True)
        ).items():
            try:
                path.mkdir()
                self._locks.append(_lock(path))
                if self.version == 2:
                    _enable(base)
                    _enable(path)
            except OSError as error:
                raise HostUnfit(
                    f"cannot make a control group in {base}: {error.strerror}",
                    fix=_delegate(base, self.version),
                ) from error

    def group(self, name: str) -> Group:
        """The group of one sandbox; not made yet."""
        return Group(self._mounts, {c: path / name for c, path in self._paths.items()})

    def names(self) -> set[str]:
        """The groups that exist now; none, when nothing leaks."""
        return {
            entry.name
            for path in set(self._paths.values())
            if path.exists()
            for entry in path.iterdir()
            if entry.is_dir()
        }

    def close(self) -> None:
        """Remove everything of this service."""
        for path in set(self._paths.values()):
            _remove_tree(path)
        for lock in self._locks:
            os.close(lock)
        self._locks.clear()


def _delegate(base: Path, version: int) -> str:
    if os.geteuid() == 0:
        return f"mount -o remount,rw {base}"
    if version == 1:  # which can be delegated to nobody
        return "run as root, or boot with systemd.unified_cgroup_hierarchy=1 (cgroup v2)"
    return "systemd-run --user --scope -p Delegate=yes code-executor serve"


def _bases(mounts: Mounts) -> dict[str, Path]:
    """Where a new group may be made: the hierarchy's root as root, else our own delegated group."""
    if mounts.version == 1:
        return dict(mounts.directories)
    root = next(iter(mounts.directories.values()))
    real_root = not (root / "cgroup.type").exists()
    if real_root and os.access(root, os.W_OK):
        return dict.fromkeys(CONTROLLERS_V2, root)
    own = root / _own_groups()[""].lstrip("/")
    if own.name == "supervisor":
        own = own.parent
    _leave(own)
    return dict.fromkeys(CONTROLLERS_V2, own)


def _leave(own: Path) -> None:
    """Move what is in ``own`` to a leaf: v2 has no processes beside groups with controllers."""
    leaf = own / "supervisor"
    try:
        leaf.mkdir(exist_ok=True)
        for pid in (own / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                _write(f"{leaf}/cgroup.procs", pid)
    except OSError as error:
        raise HostUnfit(
            f"the control group {own} is not delegated to this user: {error.strerror}",
            fix=_delegate(own, 2),
        ) from error


def _enable(directory: Path) -> None:
    missing = set(CONTROLLERS_V2) - set((directory / "cgroup.subtree_control").read_text().split())
    if missing:
        _write(f"{directory}/cgroup.subtree_control", " ".join(f"+{c}" for c in sorted(missing)))


def _lock(path: Path) -> int:
    """A descriptor that holds the lock of a directory.

    Raises:
        BlockingIOError: somebody else holds it.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise
    return fd


def sweep(bases: Iterable[Path]) -> Sequence[str]:
    """Remove the directories of services that are no longer alive; returns their names."""
    swept = []
    for base in dict.fromkeys(bases):
        for entry in base.glob(f"{PREFIX}*"):
            try:
                lock = _lock(entry)
            except (BlockingIOError, FileNotFoundError):
                continue
            _remove_tree(entry)
            os.close(lock)
            swept.append(entry.name)
    return swept


def remove_empty(name: str) -> None:
    """Remove what an OCI runtime has made for a tree in hierarchies that the tree does not use."""
    for point, kind, _ in _mount_lines():
        if kind in {"cgroup", "cgroup2"}:
            with contextlib.suppress(OSError):
                Path(point, name).rmdir()


def _remove_tree(path: Path) -> None:
    """Kill and remove a group with everything below it; gives up after a second."""
    children = [entry for entry in path.iterdir() if entry.is_dir()] if path.exists() else []
    for child in children:
        _remove_tree(child)
    for _ in range(100):
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            with contextlib.suppress(OSError):
                for pid in map(int, (path / "cgroup.procs").read_text().split()):
                    if pid:  # 0: of a foreign pid namespace; kill(2) would take it for our group
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        else:
            return
