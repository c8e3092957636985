"""One thread with one database connection, fed by the event loop.

Theory of operation
-------------------
Callers on an event loop hand over an operation (a function of a connection) and await a future.
The lane's thread takes everything that waits, up to ``batch`` operations, runs it as one
transaction, commits once, and only then settles all the futures, with one wake-up of the loop. So
a future that has a result is committed; commits cost the same for one caller as for fifty; and
nothing is delayed in the hope of company.

An operation that raises must not fail its neighbours: the transaction is rolled back and each
operation of the batch is run again by itself, so that every caller gets his own result or his own
exception. For that, operations can be run again from the start (``sql`` keeps to it). A commit
that fails (a full disk) takes the same way.

Who owns what: the connection belongs to the thread, from opening to closing. The queue is the only
thing shared. A caller that is cancelled while waiting abandons the answer, not the operation.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

from sqlalchemy import Connection

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Job:
    operation: Callable[[Connection], Any]
    future: asyncio.Future[Any]


_Answer: TypeAlias = tuple[asyncio.Future[Any], Any, Exception | None]


class Lane:
    """A thread that runs operations on its own connection, many to a transaction.

    ``connect`` opens the connection, in autocommit mode; ``begin`` is the statement that opens a
    transaction; ``batch`` is how many operations may share one; ``committed`` is told, in the
    lane's thread, how many shared each, and must not raise.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[], Connection],
        *,
        begin: str,
        batch: int,
        committed: Callable[[int], None] = lambda _count: None,
    ) -> None:
        self._connect = connect
        self._begin = begin
        self._batch = batch
        self._committed = committed
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    async def start(self) -> None:
        """Start the thread and wait until its connection is open.

        Raises:
            Exception: whatever ``connect`` raised.
        """
        self._loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = self._loop.create_future()
        self._jobs.put(_Job(lambda _: None, opened))
        self._thread.start()
        await opened

    async def submit(
        self, operation: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run ``operation(connection, …)`` in the thread; returns when it is committed.

        Raises:
            RuntimeError: the lane is not open.
            Exception: whatever the operation raised, or the engine on commit.
        """
        if self._loop is None or self._closed:
            raise RuntimeError("the records are not open")
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put(_Job(lambda connection: operation(connection, *args, **kwargs), future))
        return await future

    async def close(self) -> None:
        """Finish what was handed over, close the connection, end the thread. Idempotent."""
        if self._closed or self._loop is None:
            return
        self._closed = True
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        try:
            with self._connect() as connection:
                while jobs := self._waiting():
                    answers = self._commit(connection, jobs)
                    self._settle(answers)
        except Exception as failure:  # the thread's edge: nobody may wait for it for ever
            self._closed = True
            self._settle([(job.future, None, failure) for job in self._abandoned()])

    def _waiting(self) -> list[_Job]:
        """Wait for a job, then take all there are; empty when the lane closes."""
        jobs: list[_Job] = []
        job = self._jobs.get()
        while job is not None:
            jobs.append(job)
            if len(jobs) == self._batch or self._jobs.empty():
                return jobs
            job = self._jobs.get()
        if jobs:
            self._jobs.put(None)  # the end is seen again when these are done
        return jobs

    def _abandoned(self) -> list[_Job]:
        jobs = []
        with suppress(queue.Empty):
            while True:
                jobs.append(self._jobs.get_nowait())
        return [job for job in jobs if job is not None]

    def _commit(self, connection: Connection, jobs: list[_Job]) -> list[_Answer]:
        """The jobs' answers, after one commit for all, or else one for each."""
        try:
            connection.exec_driver_sql(self._begin)
        except Exception as failure:  # somebody else's lock: trying one by one would wait for each
            return [(job.future, None, failure) for job in jobs]
        try:
            answers: list[_Answer] = [(job.future, job.operation(connection), None) for job in jobs]
            connection.exec_driver_sql("COMMIT")
        except Exception as failure:  # every kind goes to the caller whose operation raised it
            _roll_back(connection)
            if len(jobs) == 1:
                return [(jobs[0].future, None, failure)]
            return [answer for job in jobs for answer in self._commit(connection, [job])]
        self._committed(len(jobs))
        return answers

    def _settle(self, answers: list[_Answer]) -> None:
        assert self._loop is not None
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(_settle_all, answers)


def _settle_all(answers: list[_Answer]) -> None:
    for future, result, failure in answers:
        if future.done():  # cancelled meanwhile
            continue
        if failure is None:
            future.set_result(result)
        else:
            future.set_exception(failure)


def _roll_back(connection: Connection) -> None:
    """Roll back if a transaction is open; some failures have ended it already."""
    if connection.connection.dbapi_connection.in_transaction:  # type: ignore[union-attr]  # sqlite3
        connection.exec_driver_sql("ROLLBACK")
