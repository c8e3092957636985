"""The embedded records as a whole: opening, the port's methods, concurrency, closing."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from code_executor.errors import Conflict, HostUnfit, InvalidRequest
from code_executor.model import MIB, Run, RunStatus, StoredFile
from code_executor.store import SqliteRecords

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)

MakeRun = Callable[..., Run]
MakeFile = Callable[..., StoredFile]


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "postgresql://host/name"])
def test_only_a_file_is_taken(url: str) -> None:
    with pytest.raises(ValueError, match="SQLite file"):
        SqliteRecords(url)


async def test_runs_are_saved_got_listed_and_deleted(
    records: SqliteRecords, make_run: MakeRun
) -> None:
    run = make_run(stdout="2\n")
    await records.save_run(run)
    assert await records.get_run("ann", "run_a") == run
    assert await records.get_run("bob", "run_a") is None
    listed = await records.list_runs("ann", limit=1, status=RunStatus.SUCCEEDED, language="python")
    assert listed == ([run], False)
    assert await records.delete_run("ann", "run_a")
    assert await records.get_run("ann", "run_a") is None


async def test_files_are_saved_got_listed_and_deleted(
    records: SqliteRecords, make_file: MakeFile
) -> None:
    file = make_file()
    await records.save_file(file)
    assert await records.get_file("ann", "file_a") == file
    assert await records.get_file("bob", "file_a") is None
    assert await records.find_file("file_a") == file
    assert await records.list_files("ann", limit=9, purpose="artifact") == ([file], False)
    assert await records.referenced(["a" * 64, "b" * 64]) == {"a" * 64}
    assert await records.delete_file("ann", "file_a")
    assert await records.find_file("file_a") is None


async def test_time_runs_out_for_files_runs_and_claims(
    records: SqliteRecords, make_run: MakeRun, make_file: MakeFile
) -> None:
    await records.save_run(make_run(), idempotency=("key", "b" * 64))
    await records.save_file(make_file(expires_at=NOON))
    assert await records.find_idempotent("ann", "key", since=NOON) == ("b" * 64, "run_a")
    assert await records.expire_idempotency(LATER, limit=9) == 1
    assert await records.expire_files(LATER, limit=9) == 1
    assert await records.expire_runs(LATER, limit=9) == 1
    assert await records.find_idempotent("ann", "key", since=NOON) is None


async def test_of_two_runs_at_once_one_gets_the_key_and_the_other_is_not_saved(
    records: SqliteRecords, make_run: MakeRun
) -> None:
    claims = [
        records.save_run(make_run(f"run_{number}"), idempotency=("key", "b" * 64))
        for number in range(10)
    ]
    answers = await asyncio.gather(*claims, return_exceptions=True)
    assert [type(answer) for answer in answers if answer is not None] == [Conflict] * 9
    runs, _ = await records.list_runs("ann", limit=20)
    found = await records.find_idempotent("ann", "key", since=NOON)
    assert found is not None
    assert [run.id for run in runs] == [found[1]]


async def test_the_callers_mistake_comes_back_as_such(records: SqliteRecords) -> None:
    with pytest.raises(InvalidRequest):
        await records.list_runs("ann", limit=1, after="run_none")


async def test_two_full_outputs_fit(records: SqliteRecords, make_run: MakeRun) -> None:
    run = make_run(stdout="x\x00" * MIB, stderr="é" * MIB)
    await records.save_run(run)
    assert await records.get_run("ann", "run_a") == run


async def test_a_plain_run_is_committed_without_a_thread(
    url: str, make_run: MakeRun, make_file: MakeFile
) -> None:
    threads: list[int] = []
    records = SqliteRecords(
        url, checkpoint_s=600, committed=lambda _count: threads.append(threading.get_ident())
    )
    await records.start()
    threads.clear()
    here = threading.get_ident()
    await records.save_run(make_run("run_first"))  # it may have to start the log
    await records.save_run(make_run("run_plain"))
    await records.save_run(make_run("run_claim"), idempotency=("key", "b" * 64))
    await records.save_run(make_run("run_files", artifacts=(make_file(run_id="run_files"),)))
    assert [thread == here for thread in threads] == [False, True, False, False]
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as database:
        assert database.execute("SELECT count(*) FROM runs").fetchone() == (4,)
    await records.close()


async def test_where_every_commit_is_synced_each_is_the_thread_s(
    url: str, make_run: MakeRun
) -> None:
    threads: list[int] = []
    records = SqliteRecords(
        url, synchronous="FULL", committed=lambda _count: threads.append(threading.get_ident())
    )
    await records.start()
    for number in range(3):
        await records.save_run(make_run(f"run_{number}"))
    assert threading.get_ident() not in threads
    await records.close()


async def test_a_log_that_starts_anew_is_cut_off(url: str, make_run: MakeRun) -> None:
    records = SqliteRecords(url, checkpoint_s=0.2, log_bytes=0)
    await records.start()
    path = Path(url.removeprefix("sqlite:///"))
    log = path.with_name(path.name + "-wal")
    await records.save_run(make_run("run_large", stdout="x" * MIB))
    grown = log.stat().st_size
    assert grown > MIB
    async with asyncio.timeout(10):
        while log.stat().st_size >= grown:
            await asyncio.sleep(0.01)
            await records.save_run(make_run("run_small"))
    assert log.stat().st_size < MIB
    await records.close()


async def test_after_a_checkpoint_the_first_write_is_the_thread_s(
    url: str, make_run: MakeRun
) -> None:
    threads: list[int] = []
    records = SqliteRecords(
        url,
        checkpoint_s=0.2,
        log_bytes=0,
        committed=lambda _count: threads.append(threading.get_ident()),
    )
    await records.start()
    here = threading.get_ident()
    await records.save_run(make_run("run_a"))
    path = Path(url.removeprefix("sqlite:///"))
    before = path.stat().st_mtime_ns
    async with asyncio.timeout(10):
        while path.stat().st_mtime_ns == before:
            await asyncio.sleep(0.01)
        await records.save_run(make_run("run_b"))
        assert here not in threads
        while threads[-1] != here:
            await records.save_run(make_run("run_c"))
    await records.close()


async def test_a_lock_that_somebody_holds_is_waited_for_elsewhere(
    records: SqliteRecords, make_run: MakeRun, url: str
) -> None:
    await records.save_run(make_run("run_a"))
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        saving = asyncio.create_task(records.save_run(make_run("run_b")))
        await asyncio.sleep(0.05)  # the loop goes on
        assert not saving.done()
        database.execute("COMMIT")
    await saving
    assert await records.get_run("ann", "run_b") is not None


async def test_a_plain_run_does_not_take_another_tenant_s_id(
    records: SqliteRecords, make_run: MakeRun
) -> None:
    await records.save_run(make_run("run_a"))
    with pytest.raises(Conflict):
        await records.save_run(make_run("run_a", tenant="bob"))


async def test_many_at_once_share_commits_and_none_is_lost(url: str, make_run: MakeRun) -> None:
    batches: list[int] = []
    records = SqliteRecords(url, committed=batches.append)
    await records.start()
    await asyncio.gather(*[records.save_run(make_run(f"run_{n}")) for n in range(300)])
    assert max(batches) > 10
    await records.close()
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as database:
        assert database.execute("SELECT count(*) FROM runs").fetchone() == (300,)


async def test_reads_go_on_while_somebody_else_holds_the_write_lock(
    records: SqliteRecords, make_run: MakeRun, url: str
) -> None:
    await records.save_run(make_run())
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(records.save_run(make_run("run_b")))
        assert await records.get_run("ann", "run_a") is not None
        assert not waiting.done()
        other.execute("ROLLBACK")
        await waiting


async def test_everything_is_there_after_closing_and_opening(
    records: SqliteRecords, make_run: MakeRun, url: str
) -> None:
    await records.save_run(make_run(status=RunStatus.RUNNING))
    await records.close()
    again = SqliteRecords(url)
    await again.start()
    assert [run.id for run in await again.unfinished_runs()] == ["run_a"]
    await again.close()


async def test_closing_ends_the_threads_and_leaves_one_file(
    url: str, make_run: MakeRun, tmp_path: Path
) -> None:
    records = SqliteRecords(url)
    await records.start()
    await records.save_run(make_run())
    assert _lanes() == {"records-write", "records-read", "records-checkpoint"}
    await records.close()
    await records.close()
    assert _lanes() == set()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["records.db"]


def _lanes() -> set[str]:
    return {t.name for t in threading.enumerate() if t.name.startswith("records-")}


async def test_nobody_else_may_read_the_database(
    records: SqliteRecords, make_run: MakeRun, tmp_path: Path
) -> None:
    await records.save_run(make_run())
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "data").iterdir()}
    assert modes == dict.fromkeys(["records.db", "records.db-wal", "records.db-shm"], 0o600)
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


async def test_a_file_that_is_no_database_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("this is not a database\n" * 100)
    records = SqliteRecords(f"sqlite:///{tmp_path}/note.txt")
    with pytest.raises(HostUnfit, match="not a database") as refused:
        await records.start()
    assert "DATABASE_URL" in refused.value.fix
    await records.close()
    assert _lanes() == set()


async def test_a_place_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    records = SqliteRecords(f"sqlite:///{tmp_path}/file/records.db")
    with pytest.raises(HostUnfit, match="cannot be opened"):
        await records.start()


async def test_a_failure_does_not_print_what_it_could_not_save(
    records: SqliteRecords, make_run: MakeRun, url: str
) -> None:
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as other:
        other.execute("DROP TABLE runs")
    with pytest.raises(Exception, match="no such table") as failed:
        await records.save_run(make_run(stdout="a secret"))
    assert "secret" not in str(failed.value)


@pytest.mark.parametrize(("mode", "number"), [("NORMAL", 1), ("FULL", 2)])
async def test_the_connections_are_as_the_theory_says(url: str, mode: str, number: int) -> None:
    records = SqliteRecords(url, synchronous="FULL" if mode == "FULL" else "NORMAL")
    await records.start()
    with records._engine.connect() as connection:  # the only way to see a connection's settings
        read = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    await records.close()
    assert read == {
        "journal_mode": "wal",
        "synchronous": number,
        "foreign_keys": 1,
        "busy_timeout": 5_000,
    }
