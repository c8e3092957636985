"""kill -9 in the middle of work: what was answered is there, and the next start works."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from code_executor.model import RunStatus
from code_executor.objects import local_objects
from code_executor.store import SqliteRecords

WRITER = '''
"""Stores a file and saves a run with it, in eight tasks at once; prints what is answered."""
import asyncio, itertools, os, sys
from datetime import datetime, UTC
from pathlib import Path
from code_executor.model import Limits, Run, RunStatus, StoredFile
from code_executor.objects import local_objects
from code_executor.store import SqliteRecords

place = Path(sys.argv[1])

async def work(records, objects, name):
    for number in itertools.count():
        now, run_id = datetime.now(UTC), f"run_{name}_{number}"
        sha256 = await objects.put(os.urandom(50_000))
        file = StoredFile(f"file_{run_id}", "ann", "f", 50_000, sha256, "image/png", "artifact",
                          now, run_id=run_id)
        run = Run(run_id, "ann", "python", RunStatus.QUEUED, "c" * 64, Limits(), now)
        await records.save_run(run)
        await records.save_run(Run(run_id, "ann", "python", RunStatus.SUCCEEDED, "c" * 64, Limits(),
                                   now, stdout="x" * 10_000, artifacts=(file,)))
        print(run_id, sha256, flush=True)

async def main():
    records = SqliteRecords(f"sqlite:///{place}/records.db")
    await records.start()
    objects, _ = local_objects(place / "objects")
    await asyncio.gather(*[work(records, objects, name) for name in "abcdefgh"])

asyncio.run(main())
'''


@contextmanager
def writing(place: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(place)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def killed_after(place: Path, seconds: float) -> dict[str, str]:
    """Run ids and object names that were answered before the process was killed at work."""
    with writing(place) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(seconds)
        assert process.poll() is None, "it must die by our hand"
        process.kill()
        lines = [first, *process.stdout]
    whole = [(line.split()[0], line.split()[1]) for line in lines if line.endswith("\n")]
    return dict(whole)


@pytest.mark.parametrize("seconds", [0.05, 0.3, 1.3])
async def test_every_answered_run_survives_with_its_file(tmp_path: Path, seconds: float) -> None:
    answered = await asyncio.to_thread(killed_after, tmp_path, seconds)
    assert answered
    records = SqliteRecords(f"sqlite:///{tmp_path}/records.db")
    objects, _ = local_objects(tmp_path / "objects")
    await records.start()
    for run_id, sha256 in answered.items():
        run = await records.get_run("ann", run_id)
        assert run is not None
        assert run.status is RunStatus.SUCCEEDED
        assert [file.sha256 for file in run.artifacts] == [sha256]
        assert len(await objects.get(sha256)) == 50_000
    interrupted = await records.unfinished_runs()
    assert len(interrupted) <= 8
    assert not {run.id for run in interrupted} & answered.keys()
    await records.close()


async def test_killed_again_and_again_the_database_stays_sound(tmp_path: Path) -> None:
    for _ in range(3):
        await asyncio.to_thread(killed_after, tmp_path, 0.1)
    records = SqliteRecords(f"sqlite:///{tmp_path}/records.db")
    await records.start()
    with records._engine.connect() as connection:  # nothing else asks SQLite to check itself
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
    assert await records.expire_files(datetime.now(UTC), limit=10) == 0
    await records.close()
