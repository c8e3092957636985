"""One row at once, or nothing at all."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from code_executor.store.quick import LARGE_BYTES, REST_S, SLOW_S, QuickWriter

UPSERT = (
    "INSERT INTO t VALUES (:id, :owner) ON CONFLICT (id) DO UPDATE SET owner = owner"
    " WHERE owner = excluded.owner"
)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """Somebody else's connection to a database with a table."""
    path = tmp_path / "it.db"
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as opened:
        opened.execute("PRAGMA journal_mode = WAL")
        opened.execute("CREATE TABLE t (id TEXT PRIMARY KEY, owner TEXT)")
        yield opened


@pytest.fixture
def quick(other: sqlite3.Connection, tmp_path: Path) -> Iterator[QuickWriter]:
    writer = writer_of(tmp_path, time.monotonic)
    yield writer
    writer.close()


def writer_of(tmp_path: Path, monotonic: Callable[[], float]) -> QuickWriter:
    writer = QuickWriter(
        UPSERT,
        lambda: sqlite3.connect(tmp_path / "it.db", isolation_level=None),
        monotonic=monotonic,
    )
    writer.open()
    return writer


def rows(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    return connection.execute("SELECT id, owner FROM t ORDER BY id").fetchall()


def test_a_row_is_committed_when_it_returns(quick: QuickWriter, other: sqlite3.Connection) -> None:
    assert quick.write({"id": "a", "owner": "ann"})
    assert rows(other) == [("a", "ann")]


def test_a_large_row_is_left_to_the_lane(quick: QuickWriter, other: sqlite3.Connection) -> None:
    assert not quick.write({"id": "a", "owner": "a" * LARGE_BYTES})
    assert rows(other) == []
    assert quick.write({"id": "b", "owner": "b" * (LARGE_BYTES - 1)})


def test_nobody_s_lock_is_waited_for(quick: QuickWriter, other: sqlite3.Connection) -> None:
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.5, other.execute, ("COMMIT",))
    release.start()
    assert not quick.write({"id": "a", "owner": "ann"})  # who waits gets the lock in half a second
    release.join()
    assert rows(other) == []
    assert quick.write({"id": "a", "owner": "ann"})


def test_what_changes_no_row_is_for_somebody_who_can_say_why(
    quick: QuickWriter, other: sqlite3.Connection
) -> None:
    assert quick.write({"id": "a", "owner": "ann"})
    assert not quick.write({"id": "a", "owner": "bob"})
    assert not quick.write({"id": "b"})
    assert rows(other) == [("a", "ann")]


def test_after_a_slow_commit_it_rests(other: sqlite3.Connection, tmp_path: Path) -> None:
    now = iter([10.0, 10.0 + 2 * SLOW_S, 10.1 + SLOW_S, 12.0 + REST_S, 12.0 + REST_S])
    writer = writer_of(tmp_path, lambda: next(now))
    written = [writer.write({"id": name, "owner": "ann"}) for name in "abc"]
    writer.close()
    assert written == [True, False, True]
    assert [name for name, _ in rows(other)] == ["a", "c"]


def test_it_leaves_the_log_alone(other: sqlite3.Connection, tmp_path: Path) -> None:
    size = (tmp_path / "it.db").stat().st_size
    writer = writer_of(tmp_path, lambda: 0.0)
    for number in range(1_200):  # SQLite by itself checkpoints after 1,000 pages
        assert writer.write({"id": str(number), "owner": "ann"})
    assert (tmp_path / "it.db").stat().st_size == size
    writer.close()


def test_closed_it_writes_nothing(quick: QuickWriter, other: sqlite3.Connection) -> None:
    quick.close()
    quick.close()
    assert not quick.write({"id": "a", "owner": "ann"})
    assert rows(other) == []
