"""The log goes into the database file without anybody's commit waiting for it."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from code_executor.store.checkpointer import Checkpointer


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A connection in WAL mode that never checkpoints by itself, with a row in the log."""
    with closing(sqlite3.connect(tmp_path / "it.db", isolation_level=None)) as opened:
        opened.execute("PRAGMA journal_mode = WAL")
        opened.execute("PRAGMA wal_autocheckpoint = 0")
        opened.execute("CREATE TABLE t (x)")
        opened.execute("INSERT INTO t VALUES (zeroblob(100000))")
        yield opened


def checkpointer(tmp_path: Path, at_bytes: int = 0) -> Checkpointer:
    engine = create_engine(
        f"sqlite:///{tmp_path}/it.db", isolation_level="AUTOCOMMIT", poolclass=NullPool
    )
    log = tmp_path / "it.db-wal"
    return Checkpointer(engine.connect, every_s=0.01, log=log, at_bytes=at_bytes)


def test_after_a_write_the_log_is_folded_in(writer: sqlite3.Connection, tmp_path: Path) -> None:
    database = tmp_path / "it.db"
    small = database.stat().st_size
    worker = checkpointer(tmp_path)
    worker.start()
    worker.wake()
    deadline = time.monotonic() + 10
    while database.stat().st_size < small + 100_000 and time.monotonic() < deadline:
        time.sleep(0.01)
    worker.stop()
    assert database.stat().st_size > small + 100_000
    assert worker.started == worker.finished == 1


def test_a_log_that_has_not_grown_is_synced_and_left(
    writer: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(
        os, "fdatasync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}"))
    )
    worker = checkpointer(tmp_path, at_bytes=300_000)
    worker.start()

    def writes_until(holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not holds() and time.monotonic() < deadline:
            writer.execute("UPDATE t SET x = randomblob(1000)")
            worker.wake()
            time.sleep(0.01)

    writes_until(lambda: len(synced) > 1)
    assert set(synced) == {str(tmp_path / "it.db-wal")}
    assert worker.started == 0
    writes_until(lambda: worker.finished == 1)
    before = len(synced)
    writes_until(lambda: len(synced) > before + 1)  # it is folded once, not each time from then on
    assert worker.started == 1
    worker.stop()


def test_without_a_log_there_is_nothing_to_sync(tmp_path: Path) -> None:
    worker = checkpointer(tmp_path, at_bytes=1)
    worker.start()
    worker.wake()
    time.sleep(0.05)
    worker.stop()
    assert worker.started == 0


def test_without_a_write_nothing_is_done(writer: sqlite3.Connection, tmp_path: Path) -> None:
    small = (tmp_path / "it.db").stat().st_size
    worker = checkpointer(tmp_path)
    worker.start()
    time.sleep(0.1)
    assert (tmp_path / "it.db").stat().st_size == small
    assert worker.started == 0
    worker.stop()


def test_stop_ends_the_thread_and_may_come_twice_or_early(tmp_path: Path) -> None:
    checkpointer(tmp_path).stop()
    before = threading.active_count()
    worker = checkpointer(tmp_path)
    worker.start()
    worker.stop()
    worker.stop()
    assert threading.active_count() == before
