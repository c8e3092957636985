"""What a sandboxed process is expected to be, exactly.

A list of forbidden things does not notice a new hole; an exact expectation does. Whoever changes
the sandbox changes this table, in the same change and on purpose. Only what differs from host to
host or from moment to moment is left open, by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

NONE = "0000000000000000"
UNLIMITED = [-1, -1]

STATUS = {
    "Umask": "0022",
    "TracerPid": "0",
    "Uid": "1000\t1000\t1000\t1000",
    "Gid": "1000\t1000\t1000\t1000",
    "Groups": " ",
    "Threads": "1",
    "Kthread": "0",
    "SigPnd": NONE,
    "ShdPnd": NONE,
    "SigBlk": NONE,
    "SigIgn": "0000000001001000",  # SIGPIPE and SIGXFSZ: Python's own doing
    "SigCgt": "0000000000000002",  # SIGINT: likewise
    "CapInh": NONE,
    "CapPrm": NONE,
    "CapEff": NONE,
    "CapBnd": NONE,
    "CapAmb": NONE,
    "NoNewPrivs": "1",
    "Seccomp": "2",
    "Seccomp_filters": "1",
    "CoreDumping": "0",
    "VmLck": "       0 kB",
    "VmPin": "       0 kB",
    "VmSwap": "       0 kB",
}
STATUS_OF_THE_MOMENT = frozenset({
    "Name", "State", "Tgid", "Ngid", "Pid", "PPid", "FDSize", "NStgid", "NSpid", "NSpgid",
    "NSsid", "VmPeak", "VmSize", "VmHWM", "VmRSS", "RssAnon", "RssFile", "RssShmem", "VmData",
    "VmStk", "VmExe", "VmLib", "VmPTE", "HugetlbPages", "SigQ",
})  # fmt: skip
STATUS_OF_THE_HOST = frozenset({
    "THP_enabled", "untag_mask", "Speculation_Store_Bypass", "SpeculationIndirectBranch",
    "Cpus_allowed", "Cpus_allowed_list", "Mems_allowed", "Mems_allowed_list",
    "x86_Thread_features", "x86_Thread_features_locked", "voluntary_ctxt_switches",
    "nonvoluntary_ctxt_switches",
})  # fmt: skip

LIMITS = {
    "RLIMIT_AS": UNLIMITED,
    "RLIMIT_CORE": [0, 0],
    "RLIMIT_CPU": UNLIMITED,
    "RLIMIT_DATA": UNLIMITED,
    "RLIMIT_FSIZE": UNLIMITED,
    "RLIMIT_MEMLOCK": [8 << 20, 8 << 20],
    "RLIMIT_MSGQUEUE": [819_200, 819_200],
    "RLIMIT_NICE": [0, 0],
    "RLIMIT_NOFILE": [1024, 4096],
    "RLIMIT_NPROC": [64, 64],
    "RLIMIT_OFILE": [1024, 4096],
    "RLIMIT_RSS": UNLIMITED,
    "RLIMIT_RTPRIO": [0, 0],
    "RLIMIT_RTTIME": UNLIMITED,
    "RLIMIT_SIGPENDING": [1024, 1024],
    "RLIMIT_STACK": [8 << 20, 64 << 20],
}

ANY = "*"
READ_ONLY = frozenset({"ro", "nosuid", "nodev"})
SCRATCH = frozenset({"rw", "nosuid", "nodev"})
DEVICE = frozenset({"ro", "nosuid"})
MOUNTS = {
    "/": ("tmpfs", READ_ONLY),
    "/usr": (ANY, READ_ONLY),
    "/opt/python": (ANY, READ_ONLY),
    "/opt/go": (ANY, READ_ONLY),
    "/dev/null": (ANY, DEVICE),
    "/dev/zero": (ANY, DEVICE),
    "/dev/full": (ANY, DEVICE),
    "/dev/random": (ANY, DEVICE),
    "/dev/urandom": (ANY, DEVICE),
    "/dev/shm": ("tmpfs", SCRATCH | {"noexec"}),
    "/proc": ("proc", SCRATCH | {"noexec"}),
    "/work": ("tmpfs", SCRATCH),
    "/tmp": ("tmpfs", SCRATCH),
}
MASKED = frozenset({
    "/proc/kcore", "/proc/keys", "/proc/key-users", "/proc/timer_list", "/proc/kallsyms",
    "/proc/interrupts", "/proc/sysrq-trigger", "/proc/latency_stats", "/proc/sched_debug",
    "/proc/acpi", "/proc/scsi", "/proc/asound",
})  # fmt: skip
"""Covered by an empty file or directory; which of them exist is the kernel's choice."""
UNMERGED = frozenset({"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"})
"""Mounted only where the host has not merged them into /usr."""
IRRELEVANT_OPTIONS = frozenset({"relatime", "noatime", "nodiratime", "lazytime", "inode64"})

ROOT = frozenset({
    "dev", "etc", "opt", "proc", "tmp", "usr", "work",
})  # fmt: skip
DEV = {
    "fd": "lrwxrwxrwx",
    "full": "crw-rw-rw-",
    "null": "crw-rw-rw-",
    "random": "crw-rw-rw-",
    "shm": "drwxrwxrwt",
    "stderr": "lrwxrwxrwx",
    "stdin": "lrwxrwxrwx",
    "stdout": "lrwxrwxrwx",
    "urandom": "crw-rw-rw-",
    "zero": "crw-rw-rw-",
}
ETC = frozenset({
    "group", "hostname", "hosts", "localtime", "mtab", "nsswitch.conf", "os-release", "passwd",
    "resolv.conf", "timezone",
})  # fmt: skip
ETC_COPIED = frozenset({
    "alternatives", "debian_version", "fonts", "ld.so.cache", "mime.types", "php", "protocols",
    "python3", "python3.11", "python3.12", "python3.13", "services",
})  # fmt: skip
SHARED_NAMESPACES = frozenset({"time", "time_for_children"})
PLAIN = {
    "descriptors": [0, 1, 2],
    "streams": ["fifo", "fifo", "fifo"],
    "cgroups": ["/"],
    "ids": [1000] * 6,
    "session": {"sid": True, "pgid": True, "tty": "0"},
    "threads": True,
    "processes": True,
    "nice": 0,
    "policy": 0,
    "umask": 0o22,
    "cwd": "/work",
    "hostname": "sandbox",
    "oom_score_adj": "500",
    "personality": "00000000",
    "interfaces": ["lo"],
    "tmp": {},
    "shm": {},
}
ENVIRONMENT = {
    "HOME": "/work",
    "LANG": "C.UTF-8",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PATH": "/opt/python/bin:/usr/local/bin:/usr/bin:/bin",
    "TMPDIR": "/tmp",
}


@dataclass(frozen=True, slots=True)
class Posture:
    """The whole expectation for one backend.

    ``status_absent`` are lines that its kernel does not have, ``limits_of_the_host`` those that
    the container's own counter stands for, ``masked`` the options of what covers a file of
    ``/proc``. ``etc`` is ``None`` where it is the image's. ``own_users``: ids on the host differ
    from run to run, and can be seen.
    """

    plain: Mapping[str, Any]
    status: Mapping[str, str]
    status_absent: frozenset[str]
    limits: Mapping[str, list[int]]
    limits_of_the_host: frozenset[str]
    mounts: Mapping[str, tuple[str, frozenset[str]]]
    masked: frozenset[str]
    root: frozenset[str]
    dev: Mapping[str, str]
    etc: frozenset[str] | None
    shared_namespaces: frozenset[str]
    own_users: bool


NATIVE = Posture(
    plain=PLAIN,
    status=STATUS,
    status_absent=frozenset({"Kthread", "Seccomp_filters"}),
    limits=LIMITS,
    limits_of_the_host=frozenset(),
    mounts=MOUNTS,
    masked=READ_ONLY,
    root=ROOT,
    dev=DEV,
    etc=ETC,
    shared_namespaces=SHARED_NAMESPACES,
    own_users=True,
)
RUNC = replace(
    NATIVE,
    mounts=MOUNTS
    | {
        "/": (ANY, READ_ONLY),
        "/dev": (ANY, READ_ONLY | {"noexec"}),
        "/proc/acpi": ("tmpfs", frozenset({"ro"})),
        "/proc/scsi": ("tmpfs", frozenset({"ro"})),
        "/proc/asound": ("tmpfs", frozenset({"ro"})),
    },
    masked=DEVICE,  # /dev/null
)
"""The bundle's mounts are those of the native root; runc covers /proc in its own way."""
RUNC_OF_A_LESSER_ROOT = replace(RUNC, limits=LIMITS | {"RLIMIT_MSGQUEUE": [0, 0]})
"""Where the service lacks CAP_SYS_RESOURCE: no queues rather than those of all together."""

GVISOR = replace(
    NATIVE,
    plain=PLAIN | {"cgroups": [], "processes": False},
    status=STATUS | {"Groups": "  "},
    status_absent=frozenset(STATUS) - {
        "CapBnd", "CapEff", "CapInh", "CapPrm", "Gid", "Groups", "Seccomp", "Threads", "TracerPid",
        "Uid",
    },
    mounts={
        "/": ("9p", frozenset({"ro"})),
        "/usr": ("9p", frozenset({"ro"})),
        "/opt/python": ("9p", frozenset({"ro"})),
        "/opt/go": ("9p", frozenset({"ro"})),
        "/dev": ("tmpfs", frozenset({"rw"})),
        "/dev/pts": ("devpts", frozenset({"rw"})),
        "/dev/shm": ("tmpfs", frozenset({"rw", "noexec"})),
        "/proc": ("proc", frozenset({"rw", "noexec"})),
        "/sys": ("tmpfs", frozenset({"ro", "noexec"})),
        "/work": ("tmpfs", frozenset({"rw"})),
        "/tmp": ("tmpfs", frozenset({"rw"})),
    },
    root=ROOT | {"sys"},
    dev=DEV
    | {
        "fuse": "crw-rw-rw-",
        "net": "drwxr-xr-x",
        "ptmx": "lrwxrwxrwx",
        "pts": "dr-xr-xr-x",
        "tty": "crw-rw-rw-",
    },
    shared_namespaces=frozenset(),
    own_users=False,
)  # fmt: skip
"""Its own kernel's files, devices and users; see ``sandbox/differs.py``."""

ENGINE = frozenset({"ro", "nosuid", "nodev", "noexec"})
DOCKER = replace(
    NATIVE,
    plain=PLAIN | {"ids": [1000] * 7, "processes": False},
    status=STATUS | {"Groups": "1000 "},
    limits=LIMITS
    | {
        "RLIMIT_MEMLOCK": [64 << 10, 64 << 10],
        "RLIMIT_MSGQUEUE": [0, 0],
        "RLIMIT_NOFILE": [1024, 1024],
        "RLIMIT_OFILE": [1024, 1024],
    },
    limits_of_the_host=frozenset({"RLIMIT_NPROC"}),
    mounts={
        "/": ("overlay", frozenset({"ro"})),
        "/proc": ("proc", SCRATCH | {"noexec"}),
        "/dev": ("tmpfs", frozenset({"rw", "nosuid"})),
        "/dev/pts": ("devpts", frozenset({"rw", "nosuid", "noexec"})),
        "/dev/mqueue": (ANY, frozenset({"ro"})),
        "/dev/shm": ("tmpfs", SCRATCH | {"noexec"}),
        "/sys": (ANY, frozenset({"ro"})),
        "/work": ("tmpfs", SCRATCH),
        "/tmp": ("tmpfs", SCRATCH),
        "/etc/hostname": (ANY, frozenset({"ro"})),
        "/proc/acpi": ("tmpfs", frozenset({"ro"})),
        "/proc/scsi": ("tmpfs", frozenset({"ro"})),
        "/proc/asound": ("tmpfs", frozenset({"ro"})),
        **{f"/proc/{name}": ("proc", ENGINE) for name in ("bus", "fs", "irq", "sys")},
    },
    masked=frozenset({"rw", "nosuid"}),  # /dev/null
    root=ROOT | {".dockerenv", "run", "sys"},
    dev=DEV
    | {"mqueue": "drwxrwxrwt", "ptmx": "lrwxrwxrwx", "pts": "drwxr-xr-x", "tty": "crw-rw-rw-"},
    etc=None,
    shared_namespaces=SHARED_NAMESPACES | {"user"},
    own_users=False,
)
"""The engine's mounts, with no user namespace; see ``docs/docker.md``."""

OF: Mapping[str, Posture] = {
    "native": NATIVE,
    "runc": RUNC,
    "gvisor": GVISOR,
    "docker": DOCKER,
}
