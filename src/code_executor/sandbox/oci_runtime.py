"""The OCI runtime as a program: its command lines, its directory, what a dead service left.

Theory of operation. A started backend owns one directory under ``/run/code-executor``
(:class:`Place`) and holds its lock for as long as it lives: the sandboxes' root, one bundle per
sandbox, the runtime's own state. (Not in the service's data directory: a runtime looks at the root
with the sandbox's user ids, to which that is closed.) A place that nobody holds the lock on is a
dead service's; its sandboxes are deleted by the runtime that made them, then it is removed.

gVisor's *platform*, the way it intercepts system calls, depends on the host: ``kvm`` needs a
working ``/dev/kvm``, ``systrap`` a recent release, ``ptrace`` works nearly everywhere. The backend
tries them in the order of :data:`PLATFORMS` with one sandbox each.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from code_executor.errors import HostUnfit, SandboxUnavailable
from code_executor.sandbox import linux
from code_executor.sandbox.cgroup import remove_empty
from code_executor.sandbox.oci_bundle import RuntimeKind

HOST_RUN = Path("/run/code-executor")
PREFIX = "oci-"
PLATFORMS = ("systrap", "ptrace")  # kvm hangs where it is nested and half works: by request only
DELETE_TIMEOUT_S = 20.0
PROGRAMS = {RuntimeKind.GVISOR: "runsc", RuntimeKind.RUNC: "runc"}

# Whoever starts in the cgroup leaves all it starts there: runsc, its kernel and its file server.
JOIN = 'for f in $CE_PROCS; do echo $$ > "$f" || exit 97; done; unset CE_PROCS; exec "$@"'
ENTER = ("/bin/sh", "-c", JOIN, "sh")

# The kernel counts these for the user who made a user namespace too, up to the limit that he had:
# with root's, one sandbox could use up the message queues of all. Each has its own in the bundle.
CAP_SYS_RESOURCE = 24
COUNTED_TWICE = ("memlock", "msgqueue", "nproc", "sigpending")
LIFT = ("prlimit", *(f"--{name}=unlimited:unlimited" for name in COUNTED_TWICE))


def find_program(kind: RuntimeKind) -> str:
    """The runtime's path.

    Raises:
        HostUnfit: it is not installed, or this is not root.
    """
    name = PROGRAMS[kind]
    if os.geteuid() != 0:
        raise HostUnfit(f"{name} needs root", fix="run the service as root")
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        raise HostUnfit(f"{name} is not installed", fix=f"apt-get install {name}")
    return path


def may_lift() -> bool:
    """Whether this process may start a runtime with higher limits than its own."""
    status = Path("/proc/self/status").read_text()
    (effective,) = (line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> CAP_SYS_RESOURCE & 1)


class Place:
    """The directory of one started backend; see the module's docstring."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def make(cls, tree: str, program: str) -> Place:
        """A new one; ``tree`` names the cgroups and ``program`` the runtime, for a later sweep.

        Raises:
            HostUnfit: it cannot be made.
        """
        path = HOST_RUN / f"{PREFIX}{secrets.token_hex(6)}"
        try:
            for directory in (HOST_RUN, path, path / "root", path / "bundles", path / "state"):
                directory.mkdir(exist_ok=True)
                directory.chmod(0o755)  # runc goes through them with a sandbox's user id
            (path / "made.json").write_text(json.dumps({"tree": tree, "program": program}))
            lock = _lock(path)
        except OSError as error:
            raise HostUnfit(
                f"cannot make {path}: {error.strerror}", fix=f"mkdir -p {HOST_RUN}"
            ) from error
        assert lock is not None
        return cls(path, lock)

    @property
    def root(self) -> Path:
        """The root of every sandbox."""
        return self.path / "root"

    @property
    def state(self) -> Path:
        """The runtime's own directory."""
        return self.path / "state"

    def bundle(self, name: str, content: Mapping[str, Any]) -> Path:
        """Make a sandbox's bundle."""
        path = self.path / "bundles" / name
        path.mkdir(mode=0o700)
        (path / "config.json").write_text(json.dumps(content))
        return path

    def lock_root(self) -> None:
        """Make the root a mount of its own, read-only and nosuid: so it is in every sandbox.

        Init is executed from it, and /run is mounted noexec on Debian and Ubuntu.

        Raises:
            HostUnfit: mounting is not allowed here.
        """
        locked = linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV
        try:
            linux.mount(str(self.root), str(self.root), None, linux.MS_BIND)
            linux.restrict_mount(str(self.root), locked, without=linux.MOUNT_ATTR_NOEXEC)
        except OSError as error:
            raise HostUnfit(
                f"cannot mount {self.root}: {error.strerror}", fix="give the service CAP_SYS_ADMIN"
            ) from error

    def close(self) -> None:
        """Remove it all."""
        _remove(self.path)
        os.close(self._lock)


def sweep() -> Sequence[str]:
    """Remove what backends left that are no longer alive; returns the names of their places."""
    swept = []
    for path in HOST_RUN.glob(f"{PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):
            lock = _lock(path)
            if lock is None:
                continue
            _remove_dead(path)
            os.close(lock)
            swept.append(path.name)
    return swept


def _remove_dead(path: Path) -> None:
    with contextlib.suppress(OSError, ValueError, KeyError, subprocess.TimeoutExpired):
        made = json.loads((path / "made.json").read_text())
        for bundle in (path / "bundles").iterdir():
            command = [made["program"], "--root", str(path / "state"), "delete", "--force"]
            subprocess.run(
                [*command, bundle.name], capture_output=True, timeout=DELETE_TIMEOUT_S, check=False
            )
        remove_empty(made["tree"])
    _remove(path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # not mounted
        linux.umount(str(path / "root"), linux.MNT_DETACH)
    shutil.rmtree(path, ignore_errors=True)


def _lock(path: Path) -> int | None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime with its options; ``state`` is its own directory.

    ``lifted``: it starts without the limits that the kernel counts for its user (:data:`LIFT`).
    """

    kind: RuntimeKind
    program: str
    state: Path
    platform: str = ""
    lifted: bool = False

    def command(self, *arguments: str) -> list[str]:
        """Its argument vector."""
        options = ["--root", str(self.state)]
        if self.kind is RuntimeKind.GVISOR:
            options += [f"--platform={self.platform}", "--network=none", "--ignore-cgroups"]
        return [self.program, *options, *arguments]

    async def run(
        self, name: str, bundle: Path, channel: socket.socket, procs: Sequence[str]
    ) -> int:
        """Start a sandbox with ``channel`` as its standard input and output; PID 1's pid.

        ``procs`` are ``cgroup.procs`` files that the runtime itself joins first.

        Raises:
            SandboxUnavailable: the runtime refused; its words are in the message.
        """
        pid_file, words = bundle / "pid", bundle / "words"
        run = self.command("run", "--detach", "--bundle", str(bundle), "--pid-file", str(pid_file))
        first = ENTER if procs else LIFT if self.lifted else ()
        with words.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                *(*first, *run, name),
                stdin=channel.fileno(),
                stdout=channel.fileno(),
                stderr=stderr,
                cwd="/",
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "CE_PROCS": " ".join(procs)},
            )
        try:
            status = await process.wait()
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise
        if status != 0 or not pid_file.exists():
            said = words.read_text(errors="replace").strip()[-300:]
            raise SandboxUnavailable(f"{self.kind} made no sandbox: {said}", step="runtime")
        return int(pid_file.read_text())

    async def delete(self, name: str) -> bool:
        """Have the runtime forget a sandbox that is dead, or was never made.

        All that gVisor keeps of a dead one is its state file; ``runsc delete`` first asks for a
        second or two whether it is dead, each time longer.
        """
        if self.kind is RuntimeKind.GVISOR:
            for left in self.state.glob(f"{name}_sandbox*"):
                left.unlink(missing_ok=True)
            return True
        process = await asyncio.create_subprocess_exec(
            *self.command("delete", "--force", name),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )
        try:
            async with asyncio.timeout(DELETE_TIMEOUT_S):
                return await process.wait() == 0
        except TimeoutError:
            process.kill()
            await process.wait()
            return False
