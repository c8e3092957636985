"""The data directory: private to the service's user, used by one service at a time.

It holds the records, the objects and the sandboxes' mount point, each of which its own module
looks after, and two files that are looked after here: the lock, and the key of signed links.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from code_executor.errors import HostUnfit
from code_executor.signing import new_key, parse_signing_keys

LOCK = "lock"
SIGNING_KEY = "signing.key"


class DataDirectory:
    """The directory at ``path``, made for nobody else to look into if it is not there.

    Raises:
        HostUnfit: it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise HostUnfit(
                f"The data directory {path} cannot be made: {exc}",
                fix="let DATA_DIR name a directory that can be written to",
            ) from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory: two services would clash in it. Ends with the process, too.

        Raises:
            HostUnfit: another process holds it.
        """
        descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._hold(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _hold(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HostUnfit(
                f"Another service uses the data directory {self.path}.",
                fix="stop it (make down), or set DATA_DIR",
            ) from None

    def signing_keys(self) -> list[bytes]:
        """The key of signed links, made at the first call and kept, mode 0600.

        Raises:
            HostUnfit: the file cannot be read or written, holds no key, or others may read it.
        """
        path = self.path / SIGNING_KEY
        try:
            if not path.exists():
                _create_private(path, new_key(secrets.token_bytes(32)))
            _refuse_shared(path)
            return parse_signing_keys(path.read_text())
        except (OSError, ValueError) as exc:
            raise HostUnfit(
                f"The signing key {path} cannot be used: {exc}",
                fix="set SIGNING_KEY, or remove the file to have a new one made",
            ) from None


def _refuse_shared(path: Path) -> None:
    if path.stat().st_mode & 0o077:
        raise HostUnfit(
            f"The signing key {path} can be read by others than its owner.",
            fix=f"chmod 600 {path}, or remove it to have a new one made",
        )


def _create_private(path: Path, text: str) -> None:
    """Make ``path`` with ``text``, mode 0600, whole or not at all; another's is left alone."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)  # of a process that had this number and crashed
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
