"""What the filter must refuse and must let through, as data; every backend's tests use it.

A probe is one system call with arguments that do nothing: descriptors that are not open,
pointers to where nothing is. Behind a filter that works, a refused call answers before it looks
at them (EPERM, or ENOSYS where libc is to fall back); one that reached the kernel would
complain about the argument instead (EFAULT, EBADF, EINVAL).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from code_executor.sandbox import seccomp
from code_executor.sandbox.seccomp_profile import ENOSYS, EPERM

BAD_POINTER = 1
BAD_FD = (1 << 64) - 1
UPPER_BIT = 1 << 32
"""Ignored by the kernel in an ``int`` argument; a filter that compares 64 bits misses it."""

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
SOCK_STREAM, SOCK_DGRAM, SOCK_RAW = 1, 2, 3
CLONE_SIGHAND = 0x800
"""Without CLONE_VM a mistake (EINVAL): no process starts, should the filter let it through."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One call. ``errno``: the refusal expected; 0: anything but EPERM and ENOSYS."""

    name: str
    args: tuple[int, ...] = ()
    errno: int = EPERM


def _refused(*names: str) -> tuple[Probe, ...]:
    """Calls refused whatever the arguments."""
    return tuple(Probe(name, (BAD_FD,) + (BAD_POINTER,) * 5) for name in names)


MUST_REFUSE = (
    # Kernel subsystems with a record
    *_refused("io_uring_setup", "io_uring_enter", "io_uring_register", "bpf", "perf_event_open"),
    *_refused("userfaultfd", "keyctl", "add_key", "request_key", "memfd_secret", "vmsplice"),
    *_refused("io_setup", "io_submit", "remap_file_pages", "seccomp"),
    # Other processes
    *_refused("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp"),
    *_refused("process_madvise", "process_mrelease", "migrate_pages", "move_pages"),
    *_refused("mbind", "set_mempolicy", "set_mempolicy_home_node"),
    # Mounts, namespaces, roots
    *_refused("mount", "umount2", "pivot_root", "chroot", "setns", "unshare", "mount_setattr"),
    *_refused("open_tree", "move_mount", "fsopen", "fsconfig", "fsmount", "fspick"),
    *_refused("name_to_handle_at", "open_by_handle_at", "fanotify_init", "fanotify_mark"),
    # The machine
    *_refused("kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module"),
    *_refused("swapon", "swapoff", "reboot", "acct", "quotactl", "quotactl_fd", "syslog"),
    *_refused("settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "sethostname"),
    *_refused("setdomainname", "iopl", "ioperm", "modify_ldt", "lookup_dcookie", "uselib"),
    *_refused("nfsservctl", "vhangup", "sync", "syncfs", "capset", "setgroups", "ustat", "sysfs"),
    # By argument: sockets
    *(Probe("socket", (family, SOCK_DGRAM, 0)) for family in range(46) if family not in {1, 2, 10}),
    Probe("socket", (AF_INET, SOCK_RAW, 1)),
    Probe("socket", (AF_INET, SOCK_STREAM, 132)),  # SCTP
    Probe("socket", (AF_INET, SOCK_STREAM, 262)),  # MPTCP
    Probe("socket", (AF_INET6, SOCK_DGRAM, 115)),  # L2TP
    *(Probe("socket", (AF_NETLINK, SOCK_RAW, protocol)) for protocol in range(1, 23)),
    Probe("socketpair", (AF_INET, SOCK_STREAM, 0, BAD_POINTER)),
    Probe("setsockopt", (BAD_FD, 1, 26, BAD_POINTER, 0)),  # SO_ATTACH_FILTER
    Probe("setsockopt", (BAD_FD, 1, UPPER_BIT | 50, BAD_POINTER, 0)),  # SO_ATTACH_BPF
    Probe("setsockopt", (BAD_FD, 6, 31, BAD_POINTER, 0)),  # TCP_ULP
    Probe("setsockopt", (BAD_FD, 0, 35, BAD_POINTER, 0)),  # IP_ADD_MEMBERSHIP
    Probe("setsockopt", (BAD_FD, 0, 42, BAD_POINTER, 0)),  # MCAST_JOIN_GROUP
    Probe("setsockopt", (BAD_FD, 0, 64, BAD_POINTER, 0)),  # IPT_SO_SET_REPLACE
    Probe("setsockopt", (BAD_FD, 41, 20, BAD_POINTER, 0)),  # IPV6_ADD_MEMBERSHIP
    Probe("setsockopt", (BAD_FD, 41, 42, BAD_POINTER, 0)),  # MCAST_JOIN_GROUP
    # By argument: the rest
    *(Probe("clone", (1 << bit | CLONE_SIGHAND,)) for bit in (15, 17, 25, 26, 27, 28, 29, 30)),
    Probe("clone3", (BAD_POINTER, 0), ENOSYS),
    Probe("inotify_init1", (BAD_FD,), ENOSYS),
    Probe("inotify_add_watch", (BAD_FD, BAD_POINTER, 1), ENOSYS),
    Probe("ioctl", (BAD_FD, 0x5412, BAD_POINTER)),  # TIOCSTI
    Probe("ioctl", (BAD_FD, UPPER_BIT | 0x5412, BAD_POINTER)),
    Probe("ioctl", (BAD_FD, 0x541C, BAD_POINTER)),  # TIOCLINUX
    Probe("ioctl", (BAD_FD, 0x5423, BAD_POINTER)),  # TIOCSETD
    Probe("fcntl", (BAD_FD, 1026, 0)),  # F_NOTIFY
    Probe("fcntl", (BAD_FD, UPPER_BIT | 1024, 0)),  # F_SETLEASE
    Probe("prctl", (22, 2, BAD_POINTER)),  # PR_SET_SECCOMP
    Probe("prctl", (35, 1, BAD_POINTER)),  # PR_SET_MM
    Probe("prctl", (0x59616D61, 0)),  # PR_SET_PTRACER
    Probe("personality", (0x0040000,)),  # ADDR_NO_RANDOMIZE
    Probe("personality", (0x0400000,)),  # READ_IMPLIES_EXEC
    Probe("mknod", (BAD_POINTER, 0o020600, 0x103)),
    Probe("mknodat", (BAD_FD, BAD_POINTER, 0o060600, 0x800)),
    # No such call: libc has to read that, not a refusal
    Probe("unknown", (), ENOSYS),
)

MUST_ALLOW = tuple(
    Probe(name, args, 0)
    for name, args in (
        ("read", (BAD_FD, BAD_POINTER, 1)),
        ("write", (BAD_FD, BAD_POINTER, 1)),
        ("openat", (BAD_FD, BAD_POINTER, 0)),
        ("openat2", (BAD_FD, BAD_POINTER, BAD_POINTER, 24)),
        ("close", (BAD_FD,)),
        ("close_range", (9, 8, 0)),
        ("statx", (BAD_FD, BAD_POINTER, 0, 0, BAD_POINTER)),
        ("faccessat2", (BAD_FD, BAD_POINTER, 0, 0)),
        ("getdents64", (BAD_FD, BAD_POINTER, 1)),
        ("copy_file_range", (BAD_FD, 0, BAD_FD, 0, 1, 0)),
        ("sendfile", (BAD_FD, BAD_FD, 0, 1)),
        ("splice", (BAD_FD, 0, BAD_FD, 0, 1, 0)),
        ("listxattr", (BAD_POINTER, 0, 0)),
        ("flock", (BAD_FD, 2)),
        ("fcntl", (BAD_FD, 3, 0)),  # F_GETFL
        ("fcntl", (BAD_FD, 37, BAD_POINTER)),  # F_OFD_SETLK
        ("fcntl", (BAD_FD, 1030, 3)),  # F_DUPFD_CLOEXEC
        ("ioctl", (BAD_FD, 0x5401, BAD_POINTER)),  # TCGETS
        ("ioctl", (BAD_FD, 0x5413, BAD_POINTER)),  # TIOCGWINSZ
        ("ioctl", (BAD_FD, 0xFFFF_FFFF_802C_542A, BAD_POINTER)),  # TCGETS2, sign-extended
        ("execve", (BAD_POINTER, 0, 0)),
        ("execveat", (BAD_FD, BAD_POINTER, 0, 0, 0)),
        ("clone", (CLONE_SIGHAND,)),
        ("wait4", (BAD_FD, 0, 1, 0)),
        ("prlimit64", (0, 7, 0, BAD_POINTER)),
        ("prctl", (15, BAD_POINTER)),  # PR_SET_NAME
        ("prctl", (39,)),  # PR_GET_NO_NEW_PRIVS
        ("personality", (0xFFFF_FFFF,)),
        ("mmap", (0, 0, 3, 0x22, BAD_FD, 0)),
        ("madvise", (BAD_POINTER, 1, 4)),
        ("memfd_create", (BAD_POINTER, 0)),
        ("shmget", (0, 0, 0)),
        ("futex", (BAD_POINTER, 1, 1)),
        ("set_robust_list", (BAD_POINTER, 0)),
        ("membarrier", (0, 0)),
        ("rseq", (BAD_POINTER, 0)),
        ("sched_getaffinity", (0, 0, BAD_POINTER)),
        ("rt_sigaction", (0, BAD_POINTER, 0, 8)),
        ("tgkill", (BAD_FD, BAD_FD, 0)),
        ("pidfd_open", (BAD_FD, 0)),
        ("clock_nanosleep", (0, 0, BAD_POINTER, 0)),
        ("timerfd_create", (99, 0)),
        ("epoll_create1", (BAD_FD,)),
        ("getrandom", (BAD_POINTER, 1, 0)),
        ("pipe2", (BAD_POINTER, 0)),
        ("socket", (AF_UNIX, 6, 0)),
        ("socket", (AF_INET, SOCK_STREAM | 0x80800, 6)),
        ("socket", (AF_INET6, SOCK_DGRAM, 17)),
        ("socket", (AF_NETLINK, SOCK_RAW | 0x80000, 0)),
        ("socketpair", (AF_UNIX, SOCK_STREAM, 0, BAD_POINTER)),
        ("setsockopt", (BAD_FD, 1, 2, BAD_POINTER, 4)),  # SO_REUSEADDR
        ("setsockopt", (BAD_FD, 6, 1, BAD_POINTER, 4)),  # TCP_NODELAY
        ("setsockopt", (BAD_FD, 41, 26, BAD_POINTER, 4)),  # IPV6_V6ONLY
        ("connect", (BAD_FD, BAD_POINTER, 0)),
        ("mknodat", (BAD_FD, BAD_POINTER, 0o010600, 0)),
        ("landlock_create_ruleset", (BAD_POINTER, 0, 0)),
    )
)

_SCRIPT = """\
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
for name, number, args, expected in {probes!r}:
    ctypes.set_errno(0)
    result = libc.syscall(*(ctypes.c_ulong(word) for word in (number, *args)))
    errno = ctypes.get_errno() if result == -1 else 0
    if errno != expected if expected else errno in (1, 38):
        print(name, [hex(word) for word in args], "gave errno", errno, "wanted", expected)
print("probed")
"""


def as_python(probes: Sequence[Probe], machine: str | None = None) -> str:
    """A Python program that makes the calls that ``machine`` has (default: this host).

    It prints one line for each probe that did not answer as it should, then ``probed``.
    """
    numbered = [
        (probe.name, number, probe.args, probe.errno)
        for probe in probes
        if (number := _number(probe.name, machine)) is not None
    ]
    return _SCRIPT.format(probes=numbered)


def _number(name: str, machine: str | None) -> int | None:
    return 1000 if name == "unknown" else seccomp.number(name, machine)
