"""The ground process: makes the mount namespace of the sandboxes, then becomes the launcher.

Theory of operation. The service starts ``python -I -m code_executor.sandbox.ground`` with an empty
environment, the command socket as descriptor 3, the seccomp program as 4, and its instructions
(operations of :mod:`.root`, pickled by the service itself) on standard input. It

1. without root: enters a user namespace in which it is root, with the uids and gids of
   ``/etc/subuid`` and ``/etc/subgid`` mapped by newuidmap and newgidmap;
2. enters a mount namespace of its own, makes everything private, assembles the root on a small
   tmpfs, pivots into it, lets the host's root go, and makes all of it read-only;
3. executes the launcher, a static program that it had opened before.

From then on the host's files are out of reach for the launcher, the zygotes and the sandboxes. A
failure names its step on standard error and ends with exit code 1.
"""

from __future__ import annotations

import os
import pickle  # trusted: written by the service that started this process
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from code_executor.sandbox import linux
from code_executor.sandbox.root import Bind, Operation, perform

LOCKED = linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID
COMMAND_FD = 3
FILTER_FD = 4
LAUNCHER_FD = 5


@dataclass(frozen=True, slots=True)
class IdRange:
    """One range of subordinate ids: inside from 1, outside from ``start``."""

    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Instructions:
    """What the service tells this process. ``subuids`` is ``None`` when it runs as root."""

    operations: Sequence[Operation]
    staging: str
    launcher: str
    subuids: IdRange | None
    subgids: IdRange | None


def _map_ids(pid: int, told: Instructions) -> None:
    """In the parent, outside: newuidmap and newgidmap are allowed to map what root gave us."""
    assert told.subuids is not None
    assert told.subgids is not None
    for tool, own, ids in (
        ("newuidmap", os.getuid(), told.subuids),
        ("newgidmap", os.getgid(), told.subgids),
    ):
        numbers = (pid, 0, own, 1, 1, ids.start, ids.count)
        subprocess.run([tool, *map(str, numbers)], check=True)


def enter_user_namespace(told: Instructions) -> None:
    """Become root of a user namespace; a helper child, still outside, writes the maps."""
    if told.subuids is None:
        return
    parent = os.getpid()
    gate_in, gate_out = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(gate_out)
        os.read(gate_in, 1)
        _map_ids(parent, told)
        os._exit(0)
    os.close(gate_in)
    linux.unshare(linux.CLONE_NEWUSER)
    linux.prctl(linux.PR_SET_DUMPABLE, 1)
    os.write(gate_out, b"\0")
    os.close(gate_out)
    if os.waitpid(helper, 0)[1] != 0:
        raise OSError("newuidmap or newgidmap failed")
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def enter_mount_namespace(told: Instructions) -> None:
    """A private copy of the host's mounts, and a tmpfs to build the root on."""
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    options = "size=64m,nr_inodes=16384,mode=0755"
    linux.mount("tmpfs", told.staging, "tmpfs", linux.MS_NOSUID, options)


def _bind(operation: Bind, target: Path) -> None:
    linux.mount(operation.source, str(target), None, linux.MS_BIND | linux.MS_REC)
    attributes = LOCKED if operation.device else LOCKED | linux.MOUNT_ATTR_NODEV
    linux.restrict_mount(str(target), attributes)


def assemble_root(told: Instructions) -> None:
    """Carry out every operation of the list."""
    os.umask(0o022)
    for operation in told.operations:
        try:
            perform(operation, Path(told.staging), _bind)
        except OSError as error:
            raise OSError(error.errno, error.strerror, operation.path) from error


def mount_proc(told: Instructions) -> None:
    """A whole ``/proc``: without one in sight the kernel lets no sandbox mount its own."""
    target = f"{told.staging}/proc"
    if told.subuids is None:
        flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
        linux.mount("proc", target, "proc", flags)
    else:
        linux.mount("/proc", target, None, linux.MS_BIND | linux.MS_REC)


def pivot(told: Instructions) -> None:
    """Make it the root, and let the old one go."""
    os.chdir(told.staging)
    linux.pivot_root(".", ".")
    linux.umount(".", linux.MNT_DETACH)
    os.chdir("/")


def lock_root(told: Instructions) -> None:
    """The tmpfs itself becomes read-only; ``/proc`` keeps its own flags, as other mounts do."""
    del told
    locked = linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV
    linux.mount("none", "/", None, linux.MS_REMOUNT | linux.MS_BIND | locked)


def become_launcher(told: Instructions) -> None:
    """Execute the launcher, with nothing but its three descriptors."""
    del told
    os.closerange(LAUNCHER_FD + 1, 4096)
    os.set_inheritable(LAUNCHER_FD, False)
    os.execve(LAUNCHER_FD, ["launcher"], {})  # noqa: S606 - our own static program


STEPS: tuple[Callable[[Instructions], None], ...] = (
    enter_user_namespace,
    enter_mount_namespace,
    assemble_root,
    mount_proc,
    pivot,
    lock_root,
    become_launcher,
)


def main() -> None:
    """Read the instructions, do the steps, become the launcher."""
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    told: Instructions = pickle.loads(sys.stdin.buffer.read())  # noqa: S301 - see import
    launcher = os.open(told.launcher, os.O_RDONLY)
    os.dup2(launcher, LAUNCHER_FD)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    for step in STEPS:
        try:
            step(told)
        except OSError as error:
            sys.stderr.write(f"{step.__name__}: {error}\n")
            sys.exit(1)


if __name__ == "__main__":
    main()
