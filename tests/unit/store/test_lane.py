"""Grouped commits: everybody gets his own answer, and an answer means committed."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.pool import NullPool

from code_executor.store.lane import Lane


def engine_of(path: Path) -> Engine:
    return create_engine(
        f"sqlite:///{path}",
        isolation_level="AUTOCOMMIT",
        poolclass=NullPool,
        connect_args={"timeout": 0.1},
    )


def insert(connection: Connection, number: int) -> int:
    connection.exec_driver_sql("INSERT INTO numbers VALUES (?)", (number,))
    return number * 10


class Gate:
    """An operation that holds the lane until it is opened, so that others gather behind it."""

    def __init__(self) -> None:
        self._open = threading.Event()

    def __call__(self, _connection: Connection) -> None:
        assert self._open.wait(10)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "lane.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE numbers (number INTEGER PRIMARY KEY)")
    database.close()
    return path


@pytest.fixture
def committed() -> list[int]:
    return []


@pytest.fixture
async def lane(path: Path, committed: list[int]) -> AsyncIterator[Lane]:
    lane = Lane(
        "test",
        engine_of(path).connect,
        begin="BEGIN IMMEDIATE",
        batch=8,
        committed=committed.append,
    )
    await lane.start()
    committed.clear()
    yield lane
    await lane.close()


def stored(path: Path) -> set[int]:
    with sqlite3.connect(path) as database:
        numbers = {number for (number,) in database.execute("SELECT number FROM numbers")}
    database.close()
    return numbers


async def behind_a_gate(lane: Lane, *jobs: Callable[[Connection], object]) -> list[object]:
    """Submit ``jobs`` while the lane is held, let it go, and gather results and exceptions."""
    gate = Gate()
    holding = asyncio.create_task(lane.submit(gate))
    await asyncio.sleep(0.05)
    waiting = [asyncio.create_task(lane.submit(job)) for job in jobs]
    await asyncio.sleep(0)
    gate.open()
    await holding
    return await asyncio.gather(*waiting, return_exceptions=True)


async def test_an_answer_means_that_everybody_can_read_it(lane: Lane, path: Path) -> None:
    assert await lane.submit(insert, 7) == 70
    assert stored(path) == {7}


async def test_what_gathers_is_committed_together(
    lane: Lane, path: Path, committed: list[int]
) -> None:
    answers = await behind_a_gate(lane, *[lambda c, n=n: insert(c, n) for n in range(5)])
    assert answers == [0, 10, 20, 30, 40]
    assert stored(path) == {0, 1, 2, 3, 4}
    assert committed == [1, 5]


async def test_no_more_than_the_batch_shares_a_commit(lane: Lane, committed: list[int]) -> None:
    await behind_a_gate(lane, *[lambda c, n=n: insert(c, n) for n in range(20)])
    assert committed == [1, 8, 8, 4]


async def test_one_that_fails_does_not_fail_its_neighbours(lane: Lane, path: Path) -> None:
    jobs = [lambda c, n=n: insert(c, n) for n in (1, 2, 1, 3)]
    one, two, again, three = await behind_a_gate(lane, *jobs)
    assert (one, two, three) == (10, 20, 30)
    assert isinstance(again, IntegrityError)
    assert stored(path) == {1, 2, 3}


async def test_one_that_fails_halfway_leaves_nothing(lane: Lane, path: Path) -> None:
    def halfway(connection: Connection) -> None:
        insert(connection, 1)
        raise LookupError("no")

    with pytest.raises(LookupError):
        await lane.submit(halfway)
    assert await lane.submit(insert, 2) == 20
    assert stored(path) == {2}


async def test_a_lock_held_by_somebody_else_is_an_error_for_all_that_wait_and_then_over(
    lane: Lane, path: Path
) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    answers = await asyncio.gather(
        *[lane.submit(insert, n) for n in range(3)], return_exceptions=True
    )
    assert all(isinstance(answer, OperationalError) for answer in answers)
    other.execute("ROLLBACK")
    other.close()
    assert await lane.submit(insert, 4) == 40


async def test_a_caller_that_is_cancelled_abandons_the_answer_only(lane: Lane, path: Path) -> None:
    gate = Gate()
    holding = asyncio.create_task(lane.submit(gate))
    impatient = asyncio.create_task(lane.submit(insert, 5))
    await asyncio.sleep(0)
    impatient.cancel()
    gate.open()
    await holding
    await lane.submit(insert, 6)
    assert impatient.cancelled()
    assert stored(path) == {5, 6}


async def test_close_finishes_what_was_handed_over(lane: Lane, path: Path) -> None:
    waiting = [asyncio.create_task(lane.submit(insert, n)) for n in range(20)]
    await asyncio.sleep(0)
    await lane.close()
    await asyncio.gather(*waiting)
    assert stored(path) == set(range(20))
    await lane.close()


async def test_a_closed_lane_refuses(lane: Lane) -> None:
    await lane.close()
    with pytest.raises(RuntimeError, match="not open"):
        await lane.submit(insert, 1)


async def test_a_connection_that_cannot_be_opened_fails_the_start(tmp_path: Path) -> None:
    lane = Lane("test", engine_of(tmp_path / "no" / "file").connect, begin="BEGIN", batch=1)
    with pytest.raises(OperationalError):
        await lane.start()
    with pytest.raises(RuntimeError, match="not open"):
        await lane.submit(insert, 1)
    await lane.close()
