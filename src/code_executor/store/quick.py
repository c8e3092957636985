"""One row committed on the event loop itself, where that is sure to be quick.

Theory of operation
-------------------
A commit to the log is some system calls on memory: less work than handing a job to a thread and
being woken with the result. What may take long is not waited for here. Somebody else's lock: this
connection waits for none. Moving the log into the database, and starting the log anew after that,
which are fsyncs: this connection does neither, as long as it is only asked while
:class:`~code_executor.store.checkpointer.Checkpointer` and the lane say so (see ``sqlite``). A
row of more than ``LARGE_BYTES``, which takes milliseconds for every MiB. A
disk that does not keep up: after a commit of more than ``SLOW_S`` (a busy machine alone has taken
a few milliseconds), nothing is tried for ``REST_S``.

Whatever does not succeed at once, for whatever reason, has changed nothing and is for the lane,
which waits, tries again, and raises what is to be raised.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping

LARGE_BYTES = 128 * 1024
SLOW_S = 0.05
REST_S = 1.0


class QuickWriter:
    """Executes one statement, ``sql`` with named parameters, each time a commit of its own.

    ``connect`` opens a connection in autocommit mode; it is used in the thread that calls
    :meth:`open`, and in no other.
    """

    def __init__(
        self,
        sql: str,
        connect: Callable[[], sqlite3.Connection],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sql = sql
        self._connect = connect
        self._monotonic = monotonic
        self._connection: sqlite3.Connection | None = None
        self._resting_until = 0.0

    def open(self) -> None:
        """Open the connection.

        Raises:
            sqlite3.Error: it cannot be opened.
        """
        self._connection = self._connect()
        for pragma in ("busy_timeout = 0", "wal_autocheckpoint = 0"):
            self._connection.execute(f"PRAGMA {pragma}").close()

    def close(self) -> None:
        """Close the connection; nothing is written any more. Idempotent."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def write(self, row: Mapping[str, object]) -> bool:
        """Execute the statement with ``row``; whether a row was written, and is committed."""
        begun = self._monotonic()
        if self._connection is None or begun < self._resting_until or _size(row) > LARGE_BYTES:
            return False
        try:
            written = self._connection.execute(self._sql, row).rowcount
        except sqlite3.Error:
            return False
        ended = self._monotonic()
        if ended - begun > SLOW_S:
            self._resting_until = ended + REST_S
        return written > 0


def _size(row: Mapping[str, object]) -> int:
    """What the row's texts and bytes take, about."""
    return sum(len(value) for value in row.values() if isinstance(value, str | bytes))
