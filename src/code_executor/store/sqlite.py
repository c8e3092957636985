"""The embedded records: one SQLite file.

Theory of operation
-------------------
Two lanes (see ``lane``), a thread and a connection each: one writes, grouping the commits of
concurrent callers; one reads, from a snapshot, never waiting for the writer. The database is in WAL
mode, where a commit is one append to the log. The record of a run that has neither files nor a
claim is one row: it is written on the event loop (see ``quick``), and goes to the lane when that
is not to be had at once.

A third thread (see ``checkpointer``) syncs the log each second, and moves it into the database file
each 16 MiB. That needs fsync, tens of milliseconds on a bad day, which would otherwise be added to
some unlucky commit. Under writing without a pause it may never catch the end of the log; then, at
64 MiB of log, SQLite lets the writer itself do the small rest, and the log starts anew.

A log that starts anew is cut off, not written over: what is written does not begin where a block
does, and an old block that the kernel has let go of would be read first, on the event loop.

What a commit survives: with ``synchronous="NORMAL"`` a kill -9 of the service, always, since the
kernel has the bytes; not a power cut, which may lose the commits of the last second or so, and
never damages the database. ``"FULL"`` survives that too, for an fsync a commit.

Other programs may use the file at the same time; a lock they hold is waited for, up to
``busy_timeout_ms``.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

from sqlalchemy import Connection, create_engine, event, make_url
from sqlalchemy.dialects.sqlite import dialect, insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from code_executor.errors import HostUnfit
from code_executor.model import MIB, Run, RunStatus, StoredFile
from code_executor.store.checkpointer import Checkpointer
from code_executor.store.lane import Lane
from code_executor.store.migrate import migrate
from code_executor.store.quick import QuickWriter
from code_executor.store.rows import run_row
from code_executor.store.sql import Statements

P = ParamSpec("P")
T = TypeVar("T")

_LOG_PAGES = 16_384  # 64 MiB: the writer checkpoints by itself, see above
_WRITES_PER_COMMIT = 256


class SqliteRecords:
    """``ports.Records`` in the SQLite file that ``url`` (``sqlite:///path``) names.

    ``synchronous`` is SQLite's, see the module; ``claim_ttl`` is how long a claim on an
    idempotency key holds; ``page_bytes`` bounds the output in one page of runs; ``committed`` is
    told, in any thread, how many writes shared each commit; ``checkpoint_s`` is how long after a
    write the log is synced, or moved into the file if it has grown by ``log_bytes``.

    Raises:
        ValueError: ``url`` does not name a file.
    """

    def __init__(
        self,
        url: str,
        *,
        synchronous: Literal["NORMAL", "FULL"] = "NORMAL",
        busy_timeout_ms: int = 5_000,
        claim_ttl: timedelta = timedelta(hours=24),
        page_bytes: int = 16 * MIB,
        committed: Callable[[int], None] = lambda _count: None,
        checkpoint_s: float = 1.0,
        log_bytes: int = 16 * MIB,
    ) -> None:
        self._path = _file_of(url)
        self._pragmas = (
            "journal_mode = WAL",
            f"synchronous = {synchronous}",
            f"busy_timeout = {busy_timeout_ms}",
            "foreign_keys = ON",
            f"wal_autocheckpoint = {_LOG_PAGES}",
            "journal_size_limit = 0",  # cut off
        )
        # Autocommit: the lanes say BEGIN and COMMIT themselves. A failure must not print outputs.
        self._engine = create_engine(
            url, isolation_level="AUTOCOMMIT", poolclass=NullPool, hide_parameters=True
        )
        event.listen(self._engine, "connect", self._connected)
        self._sql = Statements(insert, claim_ttl=claim_ttl, page_bytes=page_bytes)
        self._writer = Lane(
            "records-write",
            self._engine.connect,
            begin="BEGIN IMMEDIATE",
            batch=_WRITES_PER_COMMIT,
            committed=committed,
        )
        self._reader = Lane("records-read", self._engine.connect, begin="BEGIN", batch=1)
        self._checkpointer = Checkpointer(
            self._engine.connect,
            every_s=checkpoint_s,
            log=self._path.with_name(f"{self._path.name}-wal"),
            at_bytes=log_bytes,
        )
        named = dialect(paramstyle="named")
        self._quick = QuickWriter(self._sql.save_run_text(named), self._driver_connection)
        self._at_once = synchronous == "NORMAL"  # with FULL every commit is an fsync
        self._committed = committed
        self._written_after = -1  # the last checkpoint that a write of the lane came after

    async def start(self) -> None:
        """Create the file (mode 0600) if need be, migrate it, start the threads.

        Raises:
            HostUnfit: the file cannot be opened, or a newer version wrote it.
        """
        try:
            await asyncio.to_thread(self._prepare)
        except (OSError, DBAPIError) as failure:
            cause = failure.orig if isinstance(failure, DBAPIError) else failure
            raise HostUnfit(
                f"the database {self._path} cannot be opened: {cause}",
                fix="let DATABASE_URL name a file in a directory that the service may write to",
            ) from failure
        await self._writer.start()
        await self._reader.start()
        if self._at_once:
            self._quick.open()
        self._checkpointer.start()

    async def close(self) -> None:
        """Commit what was handed over, fold the log into the file, end the threads."""
        self._quick.close()
        await self._writer.close()
        await self._reader.close()
        await asyncio.to_thread(self._checkpointer.stop)
        self._engine.dispose()

    async def save_run(self, run: Run, *, idempotency: tuple[str, str] | None = None) -> None:
        """See ``ports.Records``, as for all that follow."""
        if idempotency is None and not run.artifacts and self._saved_at_once(run):
            return
        await self._write(self._sql.save_run, run, idempotency)

    async def find_idempotent(
        self, tenant: str, key: str, *, since: datetime
    ) -> tuple[str, str] | None:
        return await self._reader.submit(self._sql.find_idempotent, tenant, key, since)

    async def expire_idempotency(self, before: datetime, *, limit: int) -> int:
        return await self._write(self._sql.expire_idempotency, before, limit)

    async def get_run(self, tenant: str, run_id: str) -> Run | None:
        return await self._reader.submit(self._sql.get_run, tenant, run_id)

    async def list_runs(
        self,
        tenant: str,
        *,
        limit: int,
        after: str | None = None,
        status: RunStatus | None = None,
        language: str | None = None,
    ) -> tuple[Sequence[Run], bool]:
        return await self._reader.submit(
            self._sql.list_runs, tenant, limit, after, status, language
        )

    async def unfinished_runs(self) -> Sequence[Run]:
        return await self._reader.submit(self._sql.unfinished_runs)

    async def delete_run(self, tenant: str, run_id: str) -> bool:
        return await self._write(self._sql.delete_run, tenant, run_id)

    async def expire_runs(self, before: datetime, *, limit: int) -> int:
        return await self._write(self._sql.expire_runs, before, limit)

    async def save_file(self, file: StoredFile) -> None:
        await self._write(self._sql.save_file, file)

    async def get_file(self, tenant: str, file_id: str) -> StoredFile | None:
        return await self._reader.submit(self._sql.get_file, tenant, file_id)

    async def find_file(self, file_id: str) -> StoredFile | None:
        return await self._reader.submit(self._sql.find_file, file_id)

    async def list_files(
        self, tenant: str, *, limit: int, after: str | None = None, purpose: str | None = None
    ) -> tuple[Sequence[StoredFile], bool]:
        return await self._reader.submit(self._sql.list_files, tenant, limit, after, purpose)

    async def delete_file(self, tenant: str, file_id: str) -> bool:
        return await self._write(self._sql.delete_file, tenant, file_id)

    async def expire_files(self, now: datetime, *, limit: int) -> int:
        return await self._write(self._sql.expire_files, now, limit)

    async def referenced(self, sha256s: Sequence[str]) -> set[str]:
        return await self._reader.submit(self._sql.referenced, sha256s)

    async def _write(
        self, operation: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        after = self._checkpointer.finished
        result = await self._writer.submit(operation, *args, **kwargs)
        self._written_after = max(after, self._written_after)
        self._checkpointer.wake()
        return result

    def _saved_at_once(self, run: Run) -> bool:
        """Whether ``run``, which is one row, could be committed without a thread."""
        if self._written_after != self._checkpointer.started or not self._quick.write(run_row(run)):
            return False
        self._checkpointer.wake()
        self._committed(1)
        return True

    def _driver_connection(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None)
        self._connected(connection, None)
        return connection

    def _prepare(self) -> None:
        """Make the file, and migrate it under the write lock."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        with self._engine.connect() as connection:
            # Changing a table can mean copying it, and dropping the old one must not cascade.
            connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            migrate(connection)
            connection.exec_driver_sql("COMMIT")

    def _connected(self, connection: Any, _record: object) -> None:
        for pragma in self._pragmas:
            connection.execute(f"PRAGMA {pragma}").close()


def _file_of(url: str) -> Path:
    parsed = make_url(url)
    if (
        parsed.get_backend_name() != "sqlite"
        or not parsed.database
        or parsed.database == ":memory:"
    ):
        raise ValueError(f"not the URL of an SQLite file (sqlite:///path): {url}")
    return Path(parsed.database)
