"""A thread that brings SQLite's log to the disk, so that no commit waits for fsync.

Theory of operation
-------------------
``wake`` says that something was written. A second later the thread syncs the log. When the log has
grown by ``at_bytes`` since the last time, it runs one passive checkpoint on its own connection
instead, which folds the log into the database file: it takes no lock that a reader or the writer
would wait for, and does as much as it can. Nothing depends on it having run: the log is as durable
as the file.

Whoever writes next after a checkpoint may have to start the log anew, which is an fsync too:
``started`` and ``finished`` count, for a writer that must know. That is why there is not one each
second: a service that is asked now and then would have each answer wait for it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError


class Checkpointer:
    """Syncs or folds in the file ``log`` when ``every_s`` have passed after a write."""

    def __init__(
        self, connect: Callable[[], Connection], *, every_s: float, log: Path, at_bytes: int
    ) -> None:
        self._connect = connect
        self._every_s = every_s
        self._log = log
        self._at_bytes = at_bytes
        self._folded_at = 0  # its size then
        self.started = 0
        self.finished = 0
        self._written = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="records-checkpoint", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Something was written. Cheap; any thread."""
        if not self._written.is_set():
            self._written.set()

    def stop(self) -> None:
        """End the thread; waits for a checkpoint in progress. Idempotent; fine when not started."""
        self._stopping.set()
        self._written.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _work(self) -> None:
        with self._connect() as connection:
            while True:
                self._written.wait()
                if self._stopping.wait(self._every_s):
                    return
                self._written.clear()
                if self._has_grown():
                    self._checkpoint(connection)
                else:
                    self._sync()

    def _has_grown(self) -> bool:
        size = 0
        with suppress(FileNotFoundError):
            size = self._log.stat().st_size
        if size < self._folded_at:  # it was started anew
            self._folded_at = 0
        if size - self._folded_at < self._at_bytes:
            return False
        self._folded_at = size
        return True

    # What fails here is met again by the writer's own checkpoint, which tells.

    def _checkpoint(self, connection: Connection) -> None:
        self.started += 1
        with suppress(DBAPIError):
            connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)").close()
        self.finished = self.started

    def _sync(self) -> None:
        with suppress(OSError), open(self._log, "rb") as log:
            os.fdatasync(log.fileno())
