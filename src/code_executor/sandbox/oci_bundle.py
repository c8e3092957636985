"""OCI bundles: the runtime's configuration of a sandbox, and the root directory all of them share.

Theory of operation. What a sandbox sees is what the native backend shows (:mod:`.root`): its
directories, links and texts become one directory on the host (:func:`write_root`), made once and
never written to by a sandbox; its binds become mounts of the configuration, together with the
memory file systems that each sandbox has for itself. :func:`config` is a pure function: the same
settings give the same ``config.json`` (https://github.com/opencontainers/runtime-spec).

runc shares the host's kernel, so it gets everything that the native backend has: namespaces of all
kinds, two user ids of its own, masked files in ``/proc``, ``/dev`` with five devices and the
filter. gVisor has a kernel of its own, with its own ``/dev`` and ``/proc``; user ids in it are not
the host's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from code_executor.model import MIB
from code_executor.sandbox.contained import FILTER, INIT
from code_executor.sandbox.root import HOST_NAME, Bind, Operation, Text, perform

PROGRAM_ID = 1000  # init/become.h

# What init keeps (init/setup.c), and CHOWN for what it makes in /work before it drops that.
CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
)

CAPABILITY_SETS = ("bounding", "effective", "permitted")

# As init/become.c sets them; gVisor lets nobody change some of these from inside.
RLIMITS = {
    "CORE": (0, 0),
    "NOFILE": (1024, 4096),
    "STACK": (8 * MIB, 64 * MIB),
    "MEMLOCK": (8 * MIB, 8 * MIB),
    "MSGQUEUE": (819200, 819200),
    "SIGPENDING": (1024, 1024),
    "NICE": (0, 0),
    "RTPRIO": (0, 0),
}

OOM_SCORE_ADJ = 500  # as init/become.c

# Where one sandbox could use it up for all.
NONE_FOR_ANYBODY = {"MSGQUEUE": (0, 0)}

OPEN = ("tmp", "dev/shm")  # everybody's, as on any system

MASKED = (
    "/proc/kcore",
    "/proc/keys",
    "/proc/timer_list",
    "/proc/key-users",
    "/proc/kallsyms",
    "/proc/interrupts",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/acpi",
    "/proc/scsi",
    "/proc/asound",
)
# A file is masked by /dev/null, which anybody may write to; this one is root's, and stays it.
READ_ONLY = ("/proc/sysrq-trigger",)


class RuntimeKind(StrEnum):
    """Which runtime drives the bundle: the value of ``SANDBOX_BACKEND``."""

    GVISOR = "gvisor"
    RUNC = "runc"


@dataclass(frozen=True, slots=True)
class Box:
    """What one sandbox's configuration is made of.

    ``uids`` are init's and the program's on the host, ``cgroup`` its group's path in the
    hierarchies; both are for runc only. ``shared_account``: what the kernel counts for the maker of
    a user namespace too has one limit for all sandboxes.
    """

    kind: RuntimeKind
    root: Path
    operations: Sequence[Operation]
    command: Sequence[str]
    scratch_mb: int
    uids: tuple[int, int] | None = None
    cgroup: str | None = None
    shared_account: bool = False


def write_root(root: Path, operations: Sequence[Operation], filter_program: bytes) -> None:
    """Make the directory that is the root of every sandbox; mount points included."""
    before = os.umask(0o022)
    try:
        for operation in (*operations, Text(FILTER[1:], filter_program)):
            perform(operation, root, _mounted_later)
        (root / INIT[1:]).chmod(0o755)
        for path in OPEN:  # runc gives what it mounts the mode of the mount point
            (root / path).chmod(0o1777)
    finally:
        os.umask(before)


def _mounted_later(operation: Bind, target: Path) -> None:
    """A mount of the configuration; its mount point came before it."""


def config(box: Box) -> Mapping[str, Any]:
    """The content of ``config.json``."""
    return {
        "ociVersion": "1.0.2",
        "root": {"path": str(box.root), "readonly": True},
        "hostname": HOST_NAME,
        "mounts": [*_binds(box), *_own_mounts(box)],
        "process": _process(box),
        "linux": _linux(box),
    }


def _process(box: Box) -> Mapping[str, Any]:
    limits = RLIMITS | NONE_FOR_ANYBODY if box.shared_account else RLIMITS
    return {
        "terminal": False,
        "user": {"uid": 0, "gid": 0},
        "cwd": "/",
        "args": [*box.command],
        "env": [],
        "noNewPrivileges": True,
        # init gives the program its own; in gVisor that is no business of the host's.
        "oomScoreAdj": OOM_SCORE_ADJ if box.kind is RuntimeKind.GVISOR else 0,
        "capabilities": {name: [*CAPABILITIES] for name in CAPABILITY_SETS},
        "rlimits": [
            {"type": f"RLIMIT_{name}", "soft": soft, "hard": hard}
            for name, (soft, hard) in limits.items()
        ],
    }


def _mount(path: str, kind: str, source: str, *options: str) -> Mapping[str, Any]:
    return {"destination": path, "type": kind, "source": source, "options": [*options]}


def _binds(box: Box) -> list[Mapping[str, Any]]:
    """The read-only parts of the host. A ``/dev`` that is a bind keeps runc from making devices."""
    mounts = []
    own_dev = box.kind is RuntimeKind.GVISOR
    if not own_dev:
        mounts.append(
            _mount("/dev", "bind", f"{box.root}/dev", "bind", "ro", "nosuid", "nodev", "noexec")
        )
    for bind in box.operations:
        if isinstance(bind, Bind) and not (bind.device and own_dev):
            nodev = () if bind.device else ("nodev",)
            options = ("rbind", "ro", "nosuid", *nodev)
            mounts.append(_mount(f"/{bind.path}", "bind", bind.source, *options))
    return mounts


def _own_mounts(box: Box) -> list[Mapping[str, Any]]:
    """The file systems that each sandbox has for itself."""
    size = f"size={box.scratch_mb}m"
    owner = (f"uid={PROGRAM_ID}", f"gid={PROGRAM_ID}")
    hidden = ("hidepid=invisible",) if box.kind is RuntimeKind.RUNC else ()
    inodes = ("nr_inodes=65536",) if box.kind is RuntimeKind.RUNC else ()
    scratch = ("nosuid", "nodev", size, *inodes)
    # gVisor mounts its own /sys where it is not told otherwise.
    sys = [_mount("/sys", "tmpfs", "tmpfs", "nosuid", "nodev", "noexec", "ro", "mode=0555")]
    return [
        *(sys if box.kind is RuntimeKind.GVISOR else ()),
        _mount("/proc", "proc", "proc", "nosuid", "nodev", "noexec", *hidden),
        _mount("/work", "tmpfs", "tmpfs", *scratch, "mode=0755", *owner),
        _mount("/tmp", "tmpfs", "tmpfs", *scratch, "mode=1777", *owner),  # noqa: S108 - the sandbox's
        _mount("/dev/shm", "tmpfs", "tmpfs", *scratch, "noexec", "mode=1777", *owner),  # noqa: S108
    ]


def _linux(box: Box) -> Mapping[str, Any]:
    kinds = ["pid", "ipc", "uts", "mount", "network"]
    linux: dict[str, Any] = {
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        "maskedPaths": [*MASKED] if box.kind is RuntimeKind.RUNC else [],
        "readonlyPaths": [*READ_ONLY] if box.kind is RuntimeKind.RUNC else [],
    }
    if box.uids is not None:
        maps = [
            {"containerID": inside, "hostID": outside, "size": 1}
            for inside, outside in zip((0, PROGRAM_ID), box.uids, strict=True)
        ]
        linux |= {"uidMappings": maps, "gidMappings": maps}
        kinds += ["user", "cgroup"]
    if box.cgroup is not None:
        linux["cgroupsPath"] = box.cgroup
    linux["namespaces"] = [{"type": kind} for kind in kinds]
    return linux
