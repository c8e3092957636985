"""Removes what is over: expired files, old runs and claims, objects nobody refers to, leftovers.

Theory of operation
-------------------
One task makes a pass, sleeps, and makes the next. A pass is a list of named steps; one that fails
is logged, the others go on, and the next pass tries again. Rows go in batches, each a transaction
of its own, so a caller's write waits for one batch at most.

Deleting objects safely. Whoever stores a file puts the object first and saves the row second; in
between, the object is referred to by nothing, exactly like garbage. What tells them apart is age:
``put`` makes an object young, also one that was there already, and only objects older than
``grace`` are looked at. The order here is: list the old ones, ask which of them a row refers to,
delete the rest *unless they have become young*. For an upload to lose its object, it would have to
put it before the cutoff and save its row after the question, so to take longer than ``grace`` in
between. Anything faster is safe: either its row is there when the question is asked, or its ``put``
came after the cutoff and the delete leaves the object alone.

At start, before anything is served, ``recover`` ends the runs that a crash interrupted. It takes
every unfinished run for one of those, so it is for a program that has the records to itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

from code_executor.lifecycle import advance
from code_executor.model import RunStatus
from code_executor.observe import get_logger
from code_executor.ports import Clock, Objects, Records

INTERRUPTED = "interrupted by a restart of the service"

Sweep: TypeAlias = Callable[[datetime], Awaitable[int]]
"""Removes leftovers made before a time, and returns how many."""

_log = get_logger("janitor")


@dataclass(frozen=True, slots=True)
class Retention:
    """How long things stay. ``runs`` ``None``: until they are deleted.

    ``grace`` must be longer than any upload takes between its object and its row.
    """

    runs: timedelta | None = None
    claims: timedelta = timedelta(hours=24)
    grace: timedelta = timedelta(hours=1)


class Janitor:
    """Cleans every ``every_s`` seconds, rows and objects ``batch`` at a time.

    ``sweeps`` are further steps by name, each called with the time before which leftovers count.
    """

    def __init__(
        self,
        records: Records,
        objects: Objects,
        clock: Clock,
        *,
        retention: Retention,
        every_s: float = 300.0,
        batch: int = 200,
        sweeps: Mapping[str, Sweep] | None = None,
    ) -> None:
        self._records = records
        self._objects = objects
        self._clock = clock
        self._retention = retention
        self._every_s = every_s
        self._batch = batch
        self._steps: dict[str, Sweep] = {
            "files": self._expire_files,
            "runs": self._expire_runs,
            "claims": self._expire_claims,
            "objects": self._delete_objects,
            **(sweeps or {}),
        }
        self._task: asyncio.Task[None] | None = None

    async def recover(self) -> int:
        """End the runs that a crash left queued or running, as ``error``; how many.

        Raises:
            Exception: the records' own.
        """
        runs = await self._records.unfinished_runs()
        for run in runs:
            now = self._clock.now()
            ended = advance(run, RunStatus.ERROR, now=now, reason=INTERRUPTED)
            await self._records.save_run(ended)
            _log.warning("run interrupted", run_id=run.id, tenant=run.tenant)
        return len(runs)

    def start(self) -> None:
        """Begin the first pass now, in a task of the running loop."""
        self._task = asyncio.create_task(self._work(), name="janitor")

    async def stop(self) -> None:
        """End the task wherever it is; every step can be cut off. Idempotent."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        self._task = None

    async def clean(self) -> dict[str, int]:
        """One pass: how many things each step removed; a step that failed is left out."""
        removed: dict[str, int] = {}
        for name, step in self._steps.items():
            try:
                removed[name] = await step(self._clock.now() - self._retention.grace)
            except Exception:  # a failing step must not keep the others from their work
                _log.exception("cleaning failed", step=name)
        return removed

    async def _work(self) -> None:
        while True:
            removed = await self.clean()
            if any(removed.values()):
                _log.info("cleaned", **removed)
            await asyncio.sleep(self._every_s)

    async def _expire_files(self, _cutoff: datetime) -> int:
        now = self._clock.now()
        return await self._in_batches(self._records.expire_files, now)

    async def _expire_runs(self, _cutoff: datetime) -> int:
        if self._retention.runs is None:
            return 0
        before = self._clock.now() - self._retention.runs
        return await self._in_batches(self._records.expire_runs, before)

    async def _expire_claims(self, _cutoff: datetime) -> int:
        before = self._clock.now() - self._retention.claims
        return await self._in_batches(self._records.expire_idempotency, before)

    async def _in_batches(self, expire: Callable[..., Awaitable[int]], when: datetime) -> int:
        total = 0
        while True:
            count = await expire(when, limit=self._batch)
            total += count
            if count < self._batch:
                return total

    async def _delete_objects(self, cutoff: datetime) -> int:
        total = 0
        names: list[str] = []
        async for name in self._objects.list(older_than=cutoff):
            names.append(name)
            if len(names) == self._batch:
                total += await self._delete_unreferenced(names, cutoff)
                names = []
        return total + await self._delete_unreferenced(names, cutoff)

    async def _delete_unreferenced(self, names: Sequence[str], cutoff: datetime) -> int:
        orphans = set(names) - await self._records.referenced(names)
        for name in orphans:
            await self._objects.delete(name, older_than=cutoff)
        return len(orphans)
