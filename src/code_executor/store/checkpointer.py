"""A thread that folds SQLite's log into the database file, so that no commit waits for fsync.

Theory of operation
-------------------
``wake`` says that something was written. A second later the thread runs one passive checkpoint on
its own connection: it takes no lock that a reader or the writer would wait for, and does as much as
it can. Nothing depends on it having run: the log is as durable as the file.

Whoever writes next after a checkpoint may have to start the log anew, which is an fsync too:
``started`` and ``finished`` count, for a writer that must know.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError


class Checkpointer:
    """Runs a checkpoint ``every_s`` seconds after something was written."""

    def __init__(self, connect: Callable[[], Connection], *, every_s: float) -> None:
        self._connect = connect
        self._every_s = every_s
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
                self.started += 1
                with suppress(DBAPIError):  # the writer's own checkpoint meets it again, and tells
                    connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)").close()
                self.finished = self.started
