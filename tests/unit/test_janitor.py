"""The janitor on real records and real objects, with the clock in the test's hand."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from code_executor.errors import NotFound
from code_executor.janitor import INTERRUPTED, Janitor, Retention, Sweep
from code_executor.model import Limits, Run, RunStatus, StoredFile
from code_executor.objects import ObstoreObjects, local_objects
from code_executor.store import SqliteRecords

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
NONE = {"files": 0, "runs": 0, "claims": 0, "objects": 0}


@dataclass
class HandClock:
    """Stands still until it is moved; objects have the time of the file system, hence "now"."""

    time: datetime = field(default_factory=lambda: datetime.now(UTC))

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return time.monotonic()


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def records(tmp_path: Path) -> AsyncIterator[SqliteRecords]:
    opened = SqliteRecords(f"sqlite:///{tmp_path}/records.db")
    await opened.start()
    yield opened
    await opened.close()


@pytest.fixture
def objects(tmp_path: Path) -> ObstoreObjects:
    return local_objects(tmp_path / "objects")[0]


@pytest.fixture
def make(
    records: SqliteRecords, objects: ObstoreObjects, clock: HandClock
) -> Callable[..., Janitor]:
    def make(retention: Retention | None = None, every_s: float = 300, **sweeps: Sweep) -> Janitor:
        return Janitor(
            records,
            objects,
            clock,
            retention=retention or Retention(),
            every_s=every_s,
            batch=3,
            sweeps=sweeps,
        )

    return make


def a_run(clock: HandClock, run_id: str, status: RunStatus = RunStatus.SUCCEEDED) -> Run:
    return Run(
        id=run_id,
        tenant="ann",
        language="python",
        status=status,
        code_sha256="c" * 64,
        limits=Limits(),
        created_at=clock.now(),
    )


def a_file(clock: HandClock, sha256: str, **changes: Any) -> StoredFile:
    usual: dict[str, Any] = {
        "id": f"file_{sha256[:8]}",
        "tenant": "ann",
        "name": "a.txt",
        "size": 1,
        "content_type": "text/plain",
        "purpose": "upload",
        "created_at": clock.now(),
    }
    return StoredFile(sha256=sha256, **usual | changes)


class TestClean:
    async def test_on_fresh_things_it_removes_nothing(
        self,
        make: Callable[..., Janitor],
        records: SqliteRecords,
        objects: ObstoreObjects,
        clock: HandClock,
    ) -> None:
        name = await objects.put(b"x")
        await records.save_file(a_file(clock, name, expires_at=clock.now() + DAY))
        await records.save_run(a_run(clock, "run_a"), idempotency=("key", "b" * 64))
        assert await make(Retention(runs=DAY)).clean() == NONE

    async def test_a_files_time_takes_its_row_and_later_its_object(
        self,
        make: Callable[..., Janitor],
        records: SqliteRecords,
        objects: ObstoreObjects,
        clock: HandClock,
    ) -> None:
        name = await objects.put(b"x")
        await records.save_file(a_file(clock, name, expires_at=clock.now()))
        assert await make().clean() == {**NONE, "files": 1}
        assert await objects.get(name) == b"x"
        clock.time += 2 * HOUR
        assert await make().clean() == {**NONE, "objects": 1}
        with pytest.raises(NotFound):
            await objects.get(name)

    async def test_an_object_stays_as_long_as_any_row_names_it(
        self,
        make: Callable[..., Janitor],
        records: SqliteRecords,
        objects: ObstoreObjects,
        clock: HandClock,
    ) -> None:
        name = await objects.put(b"x")
        await records.save_file(a_file(clock, name, expires_at=clock.now()))
        await records.save_file(a_file(clock, name, id="file_bobs", tenant="bob"))
        clock.time += 2 * HOUR
        assert await make().clean() == {**NONE, "files": 1}
        assert await objects.get(name) == b"x"

    async def test_more_than_a_batch_goes_in_one_pass(
        self,
        make: Callable[..., Janitor],
        records: SqliteRecords,
        objects: ObstoreObjects,
        clock: HandClock,
    ) -> None:
        for number in range(10):
            name = await objects.put(b"%d" % number)
            if number < 8:
                await records.save_file(a_file(clock, name, expires_at=clock.now()))
            await records.save_run(a_run(clock, f"run_{number}"), idempotency=(name, "b" * 64))
        clock.time += 2 * DAY
        removed = await make(Retention(runs=DAY)).clean()
        assert removed == {"files": 8, "runs": 10, "claims": 0, "objects": 10}

    async def test_claims_and_runs_go_by_their_own_times(
        self, make: Callable[..., Janitor], records: SqliteRecords, clock: HandClock
    ) -> None:
        await records.save_run(a_run(clock, "run_a"), idempotency=("key", "b" * 64))
        retention = Retention(runs=3 * DAY)
        clock.time += 2 * DAY
        assert await make(retention).clean() == {**NONE, "claims": 1}
        clock.time += 2 * DAY
        assert await make().clean() == NONE
        assert await make(retention).clean() == {**NONE, "runs": 1}

    async def test_a_file_being_stored_keeps_its_object(
        self,
        make: Callable[..., Janitor],
        records: SqliteRecords,
        objects: ObstoreObjects,
        clock: HandClock,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The race of the docstring: old garbage is put again while it is being collected."""
        name = await objects.put(b"x")
        then = (clock.now() - 2 * HOUR).timestamp()
        os.utime(tmp_path / "objects" / name[:2] / name, (then, then))
        asked = records.referenced

        async def put_just_after_the_question(sha256s: Sequence[str]) -> set[str]:
            answer = await asked(sha256s)
            await objects.put(b"x")
            return answer

        monkeypatch.setattr(records, "referenced", put_just_after_the_question)
        await make().clean()
        await records.save_file(a_file(clock, name))
        assert await objects.get(name) == b"x"

    async def test_sweeps_are_called_with_the_time_before_which_things_are_leftovers(
        self, make: Callable[..., Janitor], clock: HandClock
    ) -> None:
        called: list[datetime] = []

        async def sweep(older_than: datetime) -> int:
            called.append(older_than)
            return 4

        removed = await make(Retention(grace=DAY), parts=sweep).clean()
        assert removed == {**NONE, "parts": 4}
        assert called == [clock.now() - DAY]

    async def test_a_step_that_fails_is_logged_and_the_next_goes_on(
        self, make: Callable[..., Janitor], records: SqliteRecords, clock: HandClock
    ) -> None:
        async def broken(_older_than: datetime) -> int:
            raise OSError("disk on fire")

        async def fine(_older_than: datetime) -> int:
            return 1

        with capture_logs() as logs:
            removed = await make(broken=broken, fine=fine).clean()
        assert removed == {**NONE, "fine": 1}
        assert [(line["event"], line["step"]) for line in logs] == [("cleaning failed", "broken")]


class TestRecover:
    async def test_what_a_crash_interrupted_becomes_an_error(
        self, make: Callable[..., Janitor], records: SqliteRecords, clock: HandClock
    ) -> None:
        for status in RunStatus:
            await records.save_run(a_run(clock, f"run_{status}", status))
        clock.time += HOUR
        assert await make().recover() == 2
        for run_id in ("run_queued", "run_running"):
            run = await records.get_run("ann", run_id)
            assert run is not None
            assert (run.status, run.reason) == (RunStatus.ERROR, INTERRUPTED)
            assert run.finished_at == clock.now()
        ended = await records.get_run("ann", "run_succeeded")
        assert ended == a_run(HandClock(clock.now() - HOUR), "run_succeeded")
        assert await make().recover() == 0


class TestTask:
    async def test_it_cleans_at_once_and_again_and_again(
        self, make: Callable[..., Janitor]
    ) -> None:
        passes = asyncio.Semaphore(0)

        async def count(_older_than: datetime) -> int:
            passes.release()
            return 0

        janitor = make(every_s=0.001, count=count)
        janitor.start()
        async with asyncio.timeout(10):
            for _ in range(3):
                await passes.acquire()
        await janitor.stop()

    async def test_stop_cuts_off_a_step_and_may_come_twice_or_early(
        self, make: Callable[..., Janitor]
    ) -> None:
        reached = asyncio.Event()

        async def hang(_older_than: datetime) -> int:
            reached.set()
            await asyncio.Event().wait()
            return 0

        janitor = make(hang=hang)
        await janitor.stop()
        janitor.start()
        async with asyncio.timeout(10):
            await reached.wait()
            await janitor.stop()
            await janitor.stop()
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "janitor"]

    async def test_what_was_removed_is_one_log_line(
        self, make: Callable[..., Janitor], objects: ObstoreObjects, clock: HandClock
    ) -> None:
        await objects.put(b"x")
        clock.time += 2 * HOUR
        done = asyncio.Event()

        async def last(_older_than: datetime) -> int:
            done.set()
            return 0

        with capture_logs() as logs:
            janitor = make(last=last)
            janitor.start()
            await done.wait()
            await asyncio.sleep(0)
            await janitor.stop()
        assert [line["objects"] for line in logs if line["event"] == "cleaned"] == [1]
