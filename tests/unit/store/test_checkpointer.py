"""The log goes into the database file without anybody's commit waiting for it."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
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


def checkpointer(tmp_path: Path) -> Checkpointer:
    engine = create_engine(
        f"sqlite:///{tmp_path}/it.db", isolation_level="AUTOCOMMIT", poolclass=NullPool
    )
    return Checkpointer(engine.connect, every_s=0.01)


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
