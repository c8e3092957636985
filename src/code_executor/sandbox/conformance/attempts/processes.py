"""No process but one's own: not to see, not to signal, not to read."""

from __future__ import annotations

import ctypes
import os
import signal
import stat
import time

from .harness import Reached, attempt, forbidden, refused, unreadable

MOST = 8
"""More processes than these are not this program and its init."""


def _visible() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


@attempt("P1", quick=True)
def see_processes_of_the_host() -> None:
    """See a process that is neither this program's nor its init."""
    seen = _visible()
    if len(seen) > MOST or max(seen) > 300:
        raise Reached(f"{len(seen)} processes, up to {max(seen)}")


@attempt("P1", quick=True)
def read_the_init() -> None:
    """Read memory, environment, files or maps of process 1."""
    unreadable("/proc/1/environ", "/proc/1/mem", "/proc/1/maps", "/proc/1/fd", "/proc/1/root",
               "/proc/1/cwd", "/proc/1/auxv", "/proc/1/stack", "/proc/1/io", "/proc/1/map_files",
               "/proc/1/syscall", "/proc/1/personality", "/proc/1/fdinfo",
               "/proc/1/task/1/fd")  # fmt: skip
    with refused("/proc/1/mem was opened for writing"):
        os.close(os.open("/proc/1/mem", os.O_RDWR))
    with refused("/proc/1/ns was followed"):
        os.close(os.open("/proc/1/ns/mnt", os.O_RDONLY))


@attempt("P1", quick=True)
def the_channel_of_init() -> None:
    """Open, through /proc, what process 1 speaks to the service by."""
    own = {(os.fstat(number).st_dev, os.fstat(number).st_ino) for number in (0, 1, 2)}
    for path in (f"/proc/1/fd/{n}" for n in range(64)):
        for mode in (os.O_RDONLY, os.O_WRONLY):
            try:
                about = os.stat(descriptor := os.open(path, mode | os.O_NONBLOCK))
            except OSError:
                continue
            os.close(descriptor)
            foreign = (about.st_dev, about.st_ino) not in own
            if stat.S_ISSOCK(about.st_mode) or (stat.S_ISFIFO(about.st_mode) and foreign):
                raise Reached(path)


@attempt("P1", quick=True)
def signal_the_init() -> None:
    """End, stop or signal process 1."""
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, 0):
        with refused(f"signal {number} to process 1"):
            os.kill(1, number)


@attempt("P2")
def signal_everybody() -> None:
    """Signal every process there is: only this program's own may be reached."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGUSR1, lambda *_: os.write(writer, b"own"))
        time.sleep(2)
        os._exit(0)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    time.sleep(0.1)
    os.kill(-1, signal.SIGUSR1)
    if os.read(reader, 3) != b"own":
        raise Reached("the signal did not even reach this program's own child")


@attempt("P1")
def signal_by_guessing() -> None:
    """Find a foreign process by signalling every id above init's."""
    own = set(_visible())
    for pid in range(2, 40_000):
        if pid in own:
            continue
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            continue
        except PermissionError:
            raise Reached(f"process {pid} exists, unseen") from None
        raise Reached(f"process {pid} can be signalled")


@attempt("P1", quick=True)
def trace_a_process() -> None:
    """Trace, read or write another process's memory, or compare with it."""
    for target in (1, os.getppid() or 1):
        forbidden("ptrace", 16, target, 0, 0)  # PTRACE_ATTACH
        forbidden("ptrace", 0x4206, target, 0, 0)  # PTRACE_SEIZE
        forbidden("process_vm_readv", target, 0, 0, 0, 0, 0)
        forbidden("process_vm_writev", target, 0, 0, 0, 0, 0)
        forbidden("kcmp", target, os.getpid(), 0, 0, 0)


@attempt("P1")
def trace_oneself() -> None:
    """Ask to be traced, or trace one's own child: a way past filters on old kernels."""
    forbidden("ptrace", 0, 0, 0, 0)  # PTRACE_TRACEME


@attempt("P1")
def take_descriptors() -> None:
    """Take a descriptor out of another process."""
    forbidden("pidfd_getfd", 0, 0, 0)


@attempt("P1")
def descriptors_of_others() -> None:
    """Open what the parent or init has open, through /proc."""
    for pid in {1, os.getppid()} - {0, os.getpid()}:
        for number in range(32):
            with refused(f"/proc/{pid}/fd/{number} was opened"):
                os.close(os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR | os.O_NONBLOCK))


@attempt("P1")
def raise_priority() -> None:
    """Gain priority over others: nice, real-time scheduling, the out-of-memory score."""
    with refused("nice -5"):
        os.nice(-5)
    with refused("real-time scheduling"):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    with refused("oom_score_adj -500"), open("/proc/self/oom_score_adj", "w") as file:
        file.write("-500")


@attempt("P4")
def raise_limits() -> None:
    """Raise a hard limit."""
    import resource

    for name in ("NPROC", "NOFILE", "CORE", "MEMLOCK", "MSGQUEUE", "RTPRIO", "NICE", "SIGPENDING"):
        number = getattr(resource, f"RLIMIT_{name}")
        soft, hard = resource.getrlimit(number)
        if hard == resource.RLIM_INFINITY:
            continue
        try:
            resource.setrlimit(number, (soft, hard + 1))
        except (ValueError, OSError):
            continue
        raise Reached(f"RLIMIT_{name} was raised above {hard}")


@attempt("P4", quick=True)
def no_core_files() -> None:
    """Leave core files, or hand them to the host's handler."""
    import resource

    if resource.getrlimit(resource.RLIMIT_CORE) != (0, 0):
        raise Reached(f"RLIMIT_CORE is {resource.getrlimit(resource.RLIMIT_CORE)}")


@attempt("P4")
def lock_memory() -> None:
    """Lock more memory than a little."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = 64 << 20
    block = ctypes.create_string_buffer(size)
    if libc.mlock(block, ctypes.c_size_t(size)) == 0:
        raise Reached("64 MiB were locked")


@attempt("P2")
def leave_the_group() -> None:
    """Move to another control group."""
    for root, _, names in os.walk("/sys/fs/cgroup"):
        for name in names:
            if name in ("cgroup.procs", "tasks"):
                with (
                    refused(f"{root}/{name} was written"),
                    open(os.path.join(root, name), "w") as file,
                ):
                    file.write(str(os.getpid()))
