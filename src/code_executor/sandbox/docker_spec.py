"""What the engine is asked for: one container of one flavour. Pure: no engine is spoken to here.

Every restriction of a container is in :func:`container`, and nowhere else. The engine's own
defaults are not relied on: what is not said here is what a container of no privilege gets anyway.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from code_executor.model import MIB
from code_executor.sandbox.root import HOST_NAME

APPARMOR = "code-executor"
"""The profile in ``apparmor/``."""
OWN_PROCESSES = 1  # init counts in the pids controller too
USER = "1000:1000"  # PROGRAM_UID of the C sources
INODES = 16384
ULIMITS = {
    "core": 0,
    "memlock": 64 * 1024,
    "msgqueue": 0,  # counted by user: one container could use up the queues of all
    "nofile": 1024,
}
SOCKETS_V1_BYTES = 32 * MIB  # cgroup v1 counts them apart
# A weight, not a number of CPUs: half of what another process has on cgroup v1. On v2 the runtime
# makes 20 of it where others have 100, or about 60 since its newer conversion.
CPU_SHARES = 512

# Beyond the engine's own list. /sys holds nothing that a program has a business with.
MASKED = (
    "/dev/mqueue",
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys",
)
SYSCTLS = {  # the kernel's own defaults, which the engine loosens
    "net.ipv4.ip_unprivileged_port_start": "1024",
    "net.ipv4.ping_group_range": "1 0",
}
# What is masked reads as empty, but a file is masked by /dev/null, which anybody may write to.
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@dataclass(frozen=True, slots=True)
class Confinement:
    """How every container of a backend is held; the same for all of them.

    ``seccomp`` is the profile's text and ``apparmor`` a profile's name, ``None`` where the host has
    no AppArmor. ``waived`` (DISABLE_SANDBOX_SECURITY) leaves both away.
    """

    seccomp: str
    apparmor: str | None
    scratch_mb: int
    limits_sockets: bool
    waived: bool = False

    def options(self) -> list[str]:
        """``SecurityOpt``."""
        if self.waived:
            return ["no-new-privileges", "seccomp=unconfined"]
        options = ["no-new-privileges", f"seccomp={self.seccomp}"]
        return options + ([f"apparmor={self.apparmor}"] if self.apparmor else [])


def read_profile(path: Path) -> str:
    """A system call filter as an engine takes it: the file's text in one line."""
    return json.dumps(json.loads(path.read_text("utf-8")))


def container(
    image: str,
    command: Sequence[str],
    held: Confinement,
    *,
    memory_bytes: int,
    processes: int,
    labels: Mapping[str, str],
    ahead: str | None,
) -> dict[str, Any]:
    """The body of ``POST /containers/create``; ``ahead`` is a host directory for ``/opt/ahead``."""
    return {
        "Image": image,
        "Entrypoint": list(command),
        "Cmd": [],
        "User": USER,
        "Hostname": HOST_NAME,
        "WorkingDir": "/",
        "Labels": dict(labels),
        "NetworkDisabled": True,
        # The control channel. The engine closes init's standard input when we are gone, which ends
        # the container: an orphan does not run on.
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": False,
        "OpenStdin": True,
        "StdinOnce": True,
        "Tty": False,
        "HostConfig": _host(held, memory_bytes, processes, ahead),
    }


def _host(
    held: Confinement, memory_bytes: int, processes: int, ahead: str | None
) -> dict[str, Any]:
    host: dict[str, Any] = {
        "NetworkMode": "none",
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": held.options(),
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "Memory": memory_bytes,
        "MemorySwap": memory_bytes,
        "CpuShares": CPU_SHARES,
        "PidsLimit": processes + OWN_PROCESSES,
        "OomScoreAdj": 500,
        "ShmSize": held.scratch_mb * MIB,
        "Tmpfs": {path: _tmpfs(held, mode) for path, mode in (("/work", 755), ("/tmp", 1777))},  # noqa: S108
        "Ulimits": [_limit(name, value) for name, value in ULIMITS.items()],
        "Sysctls": SYSCTLS,
        "MaskedPaths": list(MASKED),
        "ReadonlyPaths": list(READ_ONLY),
        "LogConfig": {"Type": "none"},
        "RestartPolicy": {"Name": "no"},
    }
    if held.limits_sockets:  # runc has ignored it since 1.0: see docker_sandbox.limit_sockets
        host["KernelMemoryTCP"] = SOCKETS_V1_BYTES
    if ahead is not None:
        host["Mounts"] = [
            {"Type": "bind", "Source": ahead, "Target": "/opt/ahead", "ReadOnly": True}
        ]
    return host


def _tmpfs(held: Confinement, mode: int) -> str:
    """Programs may be executed there: a compiled one is."""
    size = f"size={held.scratch_mb}m,nr_inodes={INODES}"
    return f"rw,exec,nosuid,nodev,{size},mode={mode},uid=1000,gid=1000"


def _limit(name: str, value: int) -> dict[str, Any]:
    return {"Name": name, "Soft": value, "Hard": value}
