"""Whose containers are whose, so that those of a crashed service can be told and removed.

Theory of operation. A work directory has an id of its own (``home``), written once. Each backend
that starts there takes an id too and holds a lock on a file of that name for as long as it lives;
the kernel lets go of it when the process ends, however that happens. Both ids are labels of every
container. At a start, a container of this home whose owner's file is gone or can be locked belongs
to a dead service. Containers of other homes, on this engine or host, are nobody's business here.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

HOME_LABEL = "code-executor.home"
OWNER_LABEL = "code-executor.owner"


class Owner:
    """This backend's claim on its containers."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self.home = _home(directory)
        self.id = secrets.token_hex(8)
        self._file = directory / f"{self.id}.owner"
        fresh = self._file.with_suffix(".new")
        self._lock = _locked(fresh, os.O_CREAT)
        fresh.rename(self._file)  # it never has this name without its lock

    @property
    def labels(self) -> Mapping[str, str]:
        """For every container."""
        return {HOME_LABEL: self.home, OWNER_LABEL: self.id}

    def orphans(self, containers: Iterable[tuple[str, Mapping[str, str]]]) -> list[str]:
        """Of containers (id and labels), those whose service is dead."""
        mine = [
            (name, labels.get(OWNER_LABEL, ""))
            for name, labels in containers
            if labels.get(HOME_LABEL) == self.home
        ]
        dead = {owner for owner in {owner for _, owner in mine} if self._is_dead(owner)}
        return [name for name, owner in mine if owner in dead]

    def _is_dead(self, owner: str) -> bool:
        if owner == self.id:
            return False
        file = self._directory / f"{Path(owner).name}.owner"
        try:
            os.close(_locked(file, 0))
        except FileNotFoundError:
            return True
        except BlockingIOError:
            return False
        file.unlink(missing_ok=True)
        return True

    def close(self) -> None:
        """Give the claim up. Idempotent."""
        if self._lock >= 0:
            self._file.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1


def _locked(file: Path, flags: int) -> int:
    fd = os.open(file, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def _home(directory: Path) -> str:
    """The directory's id; whoever is first writes it."""
    file = directory / "home"
    fresh = directory / f"home.{secrets.token_hex(8)}"
    fresh.write_text(secrets.token_hex(8))
    with suppress(FileExistsError):
        os.link(fresh, file)
    fresh.unlink()
    return file.read_text()
