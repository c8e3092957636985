"""User ids for sandboxes: two for each that exists (init's and the program's), no two alike.

The kernel counts processes, inotify instances, message queues and keys per user id, so two runs
never share one while both exist. Services on one host keep apart by blocks: each holds the lock of
its block's file for as long as it lives.
"""

from __future__ import annotations

import fcntl
import os
from collections import deque
from pathlib import Path

from code_executor.errors import HostUnfit, SandboxUnavailable
from code_executor.sandbox.ground import IdRange

# Above what systemd gives to containers (524288…1879048191) and below the kernel's and NFS's own.
ROOT_BASE = 1_900_000_000
BLOCK = 8192
BLOCKS = 256


def subordinate(file: Path, user: str, uid: int) -> IdRange | None:
    """The first range of ``/etc/subuid`` (or subgid) for a user; subuid(5)."""
    if not file.exists():
        return None
    for line in file.read_text().splitlines():
        owner, _, numbers = line.partition(":")
        start, _, count = numbers.partition(":")
        if owner in {user, str(uid)} and start.isdigit() and count.isdigit():
            return IdRange(int(start), int(count))
    return None


class UidPairs:
    """Pairs of user ids, taken and given back; least recently used first."""

    def __init__(self, first: int, count: int, lock_fd: int = -1) -> None:
        self._lock_fd = lock_fd
        self._free = deque((uid, uid + 1) for uid in range(first, first + count - 1, 2))

    @classmethod
    def of_root(cls, directory: Path) -> UidPairs:
        """A block of its own among the services of this host.

        Raises:
            HostUnfit: all blocks are taken, or the lock directory cannot be made.
        """
        try:
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            for block in range(BLOCKS):
                fd = os.open(directory / f"uids-{block}.lock", os.O_RDWR | os.O_CREAT, 0o600)
                if _lock(fd):
                    return cls(ROOT_BASE + block * BLOCK, BLOCK, fd)
                os.close(fd)
        except OSError as error:
            raise HostUnfit(
                f"cannot lock user ids: {error}", fix=f"mkdir -p {directory}"
            ) from error
        raise HostUnfit("all blocks of user ids are taken", fix="stop other services on this host")

    def take(self) -> tuple[int, int]:
        """Init's and the program's.

        Raises:
            SandboxUnavailable: more sandboxes exist than there are ids.
        """
        if not self._free:
            raise SandboxUnavailable("no user ids are left", step="user ids")
        return self._free.popleft()

    def give_back(self, pair: tuple[int, int]) -> None:
        """To be called when nothing of the sandbox is left."""
        self._free.append(pair)

    def close(self) -> None:
        """Release the block."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
