"""Control groups, v1 and v2: the limits, the counters and the last kill of a sandbox.

Theory of operation. A service owns one directory per hierarchy (:class:`Tree`) and holds a lock on
it (flock(2) on the directory itself) for as long as it lives. In it each sandbox has one directory
of its own name. Init and a zygote's child put themselves in, through files that the service has
opened; nothing else needs to see the file system. When a sandbox is gone its directories are
removed.
Directories of a name that nobody holds a lock on are a dead service's, swept at the next start. (A
process id would not tell: services in different pid namespaces may share the hierarchy.)

v2 has one hierarchy with all controllers; v1 has one each for memory, pids and cpuacct (mounted
together or apart), and for cpu if that is asked for and there: it sets no limit, it has sandboxes
that are prepared ahead yield to runs (``Group.yields``). What differs between them is in
:mod:`.group` only.

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
from pathlib import Path

from code_executor.errors import HostUnfit
from code_executor.sandbox.group import Group, Mounts, write_control

PREFIX = "code-executor-"
CONTROLLERS_V1 = ("memory", "pids", "cpuacct")
CONTROLLERS_V2 = ("memory", "pids", "cpu")
SUPERVISOR = "supervisor"
AUTOGROUP = Path("/proc/self/autogroup")
ATTEMPTS = 10
FIRST_NICE = -10
FIRST_WEIGHT = 1000  # about the same, in version 2's unit


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


def _with_cpu(mounts: Mounts) -> Mounts:
    """v1's cpu hierarchy beside the others, where there is one that may be written."""
    if mounts.version == 2:
        return mounts
    for point, kind, options in _mount_lines():
        if kind == "cgroup" and "cpu" in options and os.access(point, os.W_OK):
            return Mounts(1, {**mounts.directories, "cpu": Path(point)})
    return mounts


def _controllers(directory: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return (directory / "cgroup.controllers").read_text().split()
    return []


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
    def open(cls, *, yielding: bool = False) -> Tree:
        """Find the hierarchies, sweep what dead services left, make this service's directories.

        ``yielding``: its groups are to be able to (``Group.yields``), where this host can have it.

        Raises:
            HostUnfit: no controllers, or no right to make directories; says what to do.
        """
        mounts = _with_cpu(find_mounts()) if yielding else find_mounts()
        bases = _bases(mounts)
        sweep(bases.values())
        tree = cls._made(mounts, bases)
        if yielding:
            tree._weigh(len(os.sched_getaffinity(0)))
            _come_first(bases.values())
        return tree

    @classmethod
    def _made(cls, mounts: Mounts, bases: dict[str, Path]) -> Tree:
        """With its directories; another service's sweep may come between one and its lock."""
        for attempt in range(ATTEMPTS):
            tree = cls(mounts, bases, f"{PREFIX}{secrets.token_hex(6)}")
            try:
                tree._make()
            except HostUnfit as unfit:
                tree.close()
                swept = isinstance(unfit.__cause__, BlockingIOError | FileNotFoundError)
                if not swept or attempt == ATTEMPTS - 1:
                    raise
            else:
                return tree
        raise AssertionError

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

    def _weigh(self, processors: int) -> None:
        """On each processor its groups together weigh as much as any other group, not a part."""
        if "cpu" not in self._paths:
            return
        name, each, most = ("cpu.weight", 100, 10_000)
        if self.version == 1:
            name, each, most = ("cpu.shares", 1024, 262_144)
        with contextlib.suppress(OSError):
            write_control(f"{self._paths['cpu']}/{name}", str(min(each * processors, most)))

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
    if own.name == SUPERVISOR:
        own = own.parent
    _leave(own)
    return dict.fromkeys(CONTROLLERS_V2, own)


def _leave(own: Path) -> None:
    """Move what is in ``own`` to a leaf: v2 has no processes beside groups with controllers."""
    leaf = own / SUPERVISOR
    try:
        leaf.mkdir(exist_ok=True)
        for pid in (own / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                write_control(f"{leaf}/cgroup.procs", pid)
    except OSError as error:
        raise HostUnfit(
            f"the control group {own} is not delegated to this user: {error.strerror}",
            fix=_delegate(own, 2),
        ) from error


def _come_first(bases: Iterable[Path]) -> None:
    """Put this process, which every run waits for, before the runs where CPU time is short.

    The kernel shares a processor among groups: those of all runs together, and sessions
    (sched_autogroup(7)) or, where somebody has made one, our own group. Of a session only
    its leader's: another one, of a shell say, is not ours to change. No right to it, no such
    kernel: an ordinary share.
    """
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):
            write_control(str(AUTOGROUP), str(FIRST_NICE))
    for base in set(bases):
        with contextlib.suppress(OSError):
            write_control(f"{base}/{SUPERVISOR}/cpu.weight", str(FIRST_WEIGHT))


def _enable(directory: Path) -> None:
    missing = set(CONTROLLERS_V2) - set((directory / "cgroup.subtree_control").read_text().split())
    if missing:
        write_control(
            f"{directory}/cgroup.subtree_control", " ".join(f"+{c}" for c in sorted(missing))
        )


def _lock(path: Path) -> int:
    """A descriptor that holds the lock of a directory.

    Raises:
        BlockingIOError: somebody else holds it.
        FileNotFoundError: there is none; somebody else's sweep may have come before the lock.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.stat()  # a lock of what is removed already is none
    except OSError:
        os.close(fd)
        raise
    return fd


def sweep(bases: Iterable[Path]) -> Sequence[str]:
    """Remove the directories of services that are no longer alive; returns their names.

    A service is alive that holds the lock of one of them: an OCI runtime makes directories for it
    in hierarchies in which it has none of its own.
    """
    distinct = list(dict.fromkeys(bases))
    names = dict.fromkeys(entry.name for base in distinct for entry in base.glob(f"{PREFIX}*"))
    return [name for name in names if _swept([base / name for base in distinct])]


def _swept(entries: Sequence[Path]) -> bool:
    with contextlib.ExitStack() as locks:
        for entry in entries:
            try:
                locks.callback(os.close, _lock(entry))
            except BlockingIOError:
                return False
            except FileNotFoundError:
                continue
        for entry in entries:
            _remove_tree(entry)
    return True


def remove_empty(name: str) -> None:
    """Remove what an OCI runtime has made for a tree in hierarchies that the tree does not use."""
    for point, kind, _ in _mount_lines():
        if kind in {"cgroup", "cgroup2"}:
            with contextlib.suppress(OSError):
                Path(point, name).rmdir()


def _remove_tree(path: Path) -> None:
    """Kill and remove a group with everything below it; gives up after a second."""
    try:
        children = [entry for entry in path.iterdir() if entry.is_dir()]
    except FileNotFoundError:
        return  # where nothing may be written, rmdir(2) would not tell
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
