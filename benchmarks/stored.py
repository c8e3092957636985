"""What thousands of stored runs cost the next request: two services, asked in turn."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from benchmarks.clients import Connection, request_bytes
from benchmarks.place import Place
from benchmarks.programs import Program
from benchmarks.results import StoredCost
from benchmarks.service import TOKEN, Server, run_request, serving
from benchmarks.stats import median, ms, timed
from code_executor.model import DEFAULT_LIMITS, Run, RunStatus
from code_executor.store import SqliteRecords

TENANT = "bench"
_AT_ONCE = 200


def measure(
    place: Place, program: Program, *, runs: int, samples: int, say: Callable[[str], None]
) -> list[StoredCost]:
    """The cost, for requests that run ``program``, read a run, and list runs."""
    say(f"stored runs: writing {runs}")
    full_data = place.scratch / "full"
    asyncio.run(_seed(full_data, runs))
    with serving(place, place.scratch / "new") as new, serving(place, full_data) as full:
        say(f"stored runs: {samples} of each request")
        return list(_compare(new, full, program, runs, samples))


async def _seed(data: Path, runs: int) -> None:
    data.mkdir(mode=0o700)
    records = SqliteRecords(f"sqlite:///{data / 'records.db'}")
    await records.start()
    try:
        for first in range(0, runs, _AT_ONCE):
            numbers = range(first, min(first + _AT_ONCE, runs))
            await asyncio.gather(*(records.save_run(_run(number)) for number in numbers))
    finally:
        await records.close()


def _run(number: int) -> Run:
    moment = datetime.now(UTC) - timedelta(seconds=number)
    return Run(
        id=f"run_bench{number:019d}",
        tenant=TENANT,
        language="python",
        status=RunStatus.SUCCEEDED,
        code_sha256="0" * 64,
        limits=DEFAULT_LIMITS,
        created_at=moment,
        attempts=1,
        exit_code=0,
        stdout="2\n",
        started_at=moment,
        finished_at=moment,
    )


def _compare(
    new: Server, full: Server, program: Program, runs: int, samples: int
) -> Iterator[StoredCost]:
    with Connection(new.address) as first, Connection(full.address) as second:
        run = run_request(program)
        ids = [str(json.loads(each.call(run))["id"]) for each in (first, second)]
        requests = {
            "run a program": (run, run),
            "read a run": tuple(_get(f"/v1/runs/{each}") for each in ids),
            "list 20 runs": (_get("/v1/runs?limit=20"),) * 2,
        }
        for _ in range(20):  # the list is as long on both sides
            first.call(run)
            second.call(run)
        for name, (to_new, to_full) in requests.items():
            pairs = [
                (timed(partial(first.call, to_new)), timed(partial(second.call, to_full)))
                for _ in range(samples)
            ]
            before, after = (median(column) for column in zip(*pairs, strict=True))
            yield StoredCost(name, runs, ms(before), ms(after), round(after / before, 3))


def _get(path: str) -> bytes:
    return request_bytes("GET", path, token=TOKEN)
