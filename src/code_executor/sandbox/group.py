"""One sandbox's control group: its limits, its counters, its last kill; v1 and v2.

What differs between the two versions is in here only. Where the group lies, and who removes what a
crash left, is told in :mod:`.cgroup`.

Source of every file's meaning: the kernel's Documentation/admin-guide/cgroup-v1 and cgroup-v2.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from code_executor.errors import SandboxUnavailable

SOCKETS_V1_BYTES = 32 * 1024 * 1024  # beside the memory limit; plenty for a client and a server
RESIDUE_MAX_BYTES = 512 * 1024  # still charged when a sandbox is gone: batches, freed later


@dataclass(frozen=True, slots=True)
class Mounts:
    """Where the hierarchies are: controller to directory (all the same one on v2)."""

    version: int
    directories: dict[str, Path]

    @property
    def distinct(self) -> tuple[Path, ...]:
        """Each directory once; cpu and cpuacct, say, may share one."""
        return tuple(dict.fromkeys(self.directories.values()))


def write_control(path: str, text: str) -> None:
    """Write a control file."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _field(content: bytes, name: bytes, *, absent: int | None = None) -> int:
    """A number of a flat-keyed file, which has a name and a number a line.

    Raises:
        ValueError: it is not there, and ``absent`` does not say what that means.
    """
    for line in content.splitlines():
        key, _, number = line.partition(b" ")
        if key == name:
            return int(number)
    if absent is None:
        raise ValueError(f"a control file without {name.decode()}")
    return absent


class Group:
    """One sandbox's cgroup. Methods are a few small file operations each and do not block long.

    They are in the way of every run, so they use plain strings and descriptors that stay open,
    not ``Path``. A group whose sandbox is gone can serve another (:meth:`recycle`): making and
    removing the directories of a group costs more than all else that is done with it.
    """

    def __init__(self, mounts: Mounts, paths: dict[str, Path]) -> None:
        self._v2 = mounts.version == 2
        self._mounts = mounts.directories
        self._paths = {controller: str(path) for controller, path in paths.items()}
        self._distinct = tuple(dict.fromkeys(self._paths.values()))
        self._cpu = ("cpu", "cpu.stat") if self._v2 else ("cpuacct", "cpuacct.usage")
        self._joined = self.files("cgroup.procs" if self._v2 else "tasks")
        self._fds: dict[str, int] = {}
        self._limits = (0, 0)
        self._yields = False
        self.made = False

    @property
    def path(self) -> str:
        """Its path in the hierarchies, the same in each, as an OCI runtime wants to know it."""
        controller, mount = next(iter(self._mounts.items()))
        return f"/{os.path.relpath(self._paths[controller], mount)}"

    def make(self, *, memory_bytes: int, processes: int) -> None:
        """Create the directories, unless this one is used again, and set the limits."""
        if not self.made:
            for path in self._distinct:
                os.mkdir(path)
            self.made = True
            if not self._v2:
                self._limit_sockets_v1()
        self.limit(memory_bytes=memory_bytes, processes=processes)
        self.open_counters()

    def open_counters(self) -> None:
        """Begin to read a group that is there; one that somebody else has made, too."""
        self._fd(*self._cpu)

    def limit(self, *, memory_bytes: int, processes: int) -> None:
        """Set the limits; swap is none. May be called again to change them.

        v2 could kill the whole group at once (memory.oom.group), but init is in it, and is needed
        to report what the program left; the watch ends such a run instead.
        """
        if (memory_bytes, processes) == self._limits:
            return
        memory = self._paths["memory"]
        self._limits = (0, 0)  # until all is written
        write_control(f"{self._paths['pids']}/pids.max", str(processes))
        if not self._v2:
            self._limit_v1(memory, str(memory_bytes))
        else:
            write_control(f"{memory}/memory.max", str(memory_bytes))
            with contextlib.suppress(FileNotFoundError):
                write_control(f"{memory}/memory.swap.max", "0")
        self._limits = (memory_bytes, processes)

    def yields(self, idle: bool) -> None:
        """Whether it gets only the CPU time that nothing else wants, or its ordinary share.

        No limit and no promise: where the kernel has no such thing (v1 without the cpu hierarchy,
        Linux before 5.15) every group keeps its ordinary share.
        """
        if idle == self._yields or "cpu" not in self._paths:
            return
        with contextlib.suppress(OSError):
            os.write(self._fd("cpu", "cpu.idle", os.O_WRONLY), b"1" if idle else b"0")
            self._yields = idle

    def _limit_v1(self, memory: str, text: str) -> None:
        both = [f"{memory}/memory.limit_in_bytes", f"{memory}/memory.memsw.limit_in_bytes"]
        # memory+swap may never be below memory: the order depends on the direction of the change.
        for attempt in (both, both[::-1]):
            try:
                for path in attempt:
                    with contextlib.suppress(FileNotFoundError):  # no swap accounting
                        write_control(path, text)
            except OSError as refused:
                if refused.errno not in (errno.EBUSY, errno.EINVAL):
                    raise
                continue
            return
        raise SandboxUnavailable("the memory limit could not be set", step="memory limit")

    def _limit_sockets_v1(self) -> None:
        """v1 counts what waits in sockets only where that has a limit; v2 counts it as memory."""
        with contextlib.suppress(FileNotFoundError):  # a kernel without either
            path = f"{self._paths['memory']}/memory.kmem.tcp.limit_in_bytes"
            write_control(path, str(SOCKETS_V1_BYTES))

    def _fd(self, controller: str, name: str, flags: int = os.O_RDONLY) -> int:
        """A control file's descriptor, opened when first asked for."""
        fd = self._fds.get(name)
        if fd is None:
            path = f"{self._paths[controller]}/{name}"
            fd = self._fds[name] = os.open(path, flags | os.O_CLOEXEC)
        return fd

    def _see(self, controller: str, name: str) -> bytes:
        return os.pread(self._fd(controller, name), 4096, 0)

    def files(self, name: str) -> list[str]:
        """The paths of a control file in each hierarchy."""
        return [f"{path}/{name}" for path in self._distinct]

    def procs(self) -> list[int]:
        """Where a process puts itself in, in each hierarchy, open for writing; they stay ours.

        v1's ``tasks``, since with ``cgroup.procs`` the kernel stops all forks first, which takes
        an idle host up to 30 ms. v2 has nothing else.
        """
        for path in self._joined:
            if path not in self._fds:
                self._fds[path] = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        return [self._fds[path] for path in self._joined]

    def cpu_us(self) -> int:
        """CPU time of all processes that ever were in it, microseconds."""
        if not self._v2:
            return int(self._see(*self._cpu)) // 1000
        return _field(self._see(*self._cpu), b"usage_usec")

    def oom_kills(self) -> int:
        """How many processes the kernel has ever ended here for memory."""
        name = "memory.events" if self._v2 else "memory.oom_control"
        return _field(self._see("memory", name), b"oom_kill", absent=0)

    def refused_processes(self) -> int:
        """How often the kernel has ever refused a new process or thread here."""
        with contextlib.suppress(FileNotFoundError):  # v1 before Linux 4.8
            return _field(self._see("pids", "pids.events"), b"max", absent=0)
        return 0

    def _peak(self) -> int:
        """The file of the highest use; writing to it makes that the present use."""
        name = "memory.peak" if self._v2 else "memory.max_usage_in_bytes"
        try:
            return self._fd("memory", name, os.O_RDWR)
        except FileNotFoundError:
            raise
        except OSError:  # a kernel that cannot reset it
            return self._fd("memory", name)

    def peak_bytes(self) -> int | None:
        """The highest memory use so far; ``None`` on v2 before Linux 5.19."""
        try:
            return int(os.pread(self._peak(), 64, 0))
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
                write_control(f"{self._distinct[0]}/cgroup.kill", "1")
                return
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def empty(self) -> bool:
        """Whether no process, not even one that waits to be reaped, is in it."""
        return not self.made or int(self._see("pids", "pids.current")) == 0

    def recycle(self) -> bool:
        """Make an empty group as good as new for another sandbox; ``False``: it must be removed.

        Its counters either start again (the peak) or are read as differences (``watch.py``). That
        needs a kernel whose peak can be reset (v1; v2 since Linux 6.12), and that the last run
        left next to nothing charged: what lingers would count against the next.
        """
        used = "memory.current" if self._v2 else "memory.usage_in_bytes"
        try:
            if int(self._see("memory", used)) > RESIDUE_MAX_BYTES:
                return False
            if os.write(self._peak(), b"0") != 1:
                return False
        except OSError:
            return False
        return True

    def close_most(self) -> None:
        """Let go of the descriptors that can be opened again, while it waits to serve."""
        # On v2 the reset of the peak is the descriptor's.
        kept = {"memory.peak": self._fds.pop("memory.peak")} if "memory.peak" in self._fds else {}
        self.close_counters()
        self._fds = kept

    def close_counters(self) -> None:
        """Let go of what :meth:`open_counters` and the readers opened. Idempotent."""
        while self._fds:
            os.close(self._fds.popitem()[1])

    def remove(self) -> bool:
        """Remove the directories; ``False`` when something is still in one of them.

        The kernel may take milliseconds for it: not for the event loop.
        """
        self.close_counters()
        gone = True
        for path in self._distinct:
            try:
                os.rmdir(path)
            except FileNotFoundError:
                continue
            except OSError:
                gone = False
        self.made = self.made and not gone
        return gone
