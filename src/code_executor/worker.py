"""Executes plans: waits for a turn, takes a sandbox, runs, destroys.

Theory of operation
-------------------
One event loop. :class:`Turns` admits at most ``capacity`` executions at once. Who comes when it
is full waits in the queue of his tenant; a place that becomes free goes to the next tenant in
turn, so that a tenant with a thousand waiting runs delays another's first by one run and no
more. The queues together hold ``queue_limit``; when they are full, a newcomer is refused unless
some other tenant waits with at least two more than he: then the newest of the longest queue is
refused in his stead. A refused execution has started nothing. For who waits the pool prepares a
sandbox meanwhile, so that a place is held for the run and not for the preparation as well.

:class:`Worker` is the pipeline of one execution. The sandbox goes back to the pool to be
destroyed whatever happened, and the answer does not wait for that. If a sandbox turns out to be
unusable before the program started (its failure names one of ``BEFORE_START``), the plan is
tried once more in another; after that point it never is, since the program may have run.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from dataclasses import replace

from code_executor.builds import Builds
from code_executor.errors import QueueFull, SandboxUnavailable
from code_executor.model import Outcome, Plan
from code_executor.observe import get_logger
from code_executor.pool import Pool
from code_executor.ports import Clock

_log = get_logger("worker")

BEFORE_START = frozenset({"prepare", "start", "release", "warm interpreter died"})
"""Steps in whose failure no instruction of the program has been executed. The last two are init's:
the interpreter that waited is gone, or not there to take all of its job, and begins nothing before
it has."""


class Turns:
    """At most ``capacity`` holders at once, at most ``queue_limit`` waiting, tenants in turn."""

    def __init__(self, capacity: int, queue_limit: int) -> None:
        self._capacity = capacity
        self._queue_limit = queue_limit
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self.held = 0
        self.waiting = 0

    def turn(
        self, tenant: str, waiting: AbstractContextManager[object] | None = None
    ) -> AbstractAsyncContextManager[None]:
        """Hold one place; waits for it, in the context ``waiting``.

        Raises:
            QueueFull: too many wait already.
        """
        return _Turn(self, tenant, waiting or nullcontext())

    async def acquire(self, tenant: str, waiting: AbstractContextManager[object]) -> None:
        """See :meth:`turn`; :meth:`release` gives the place back."""
        if self.held < self._capacity:
            self.held += 1
            return
        if self.waiting >= self._queue_limit:
            self._make_room(tenant)
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(tenant, deque()).append(place)
        self.waiting += 1
        try:
            with waiting:
                await place
        except asyncio.CancelledError:
            self._leave(tenant, place)
            raise

    def release(self) -> None:
        """Hand the place to the next tenant in turn, or give it up."""
        place = self._next()
        while place is not None and place.done():  # he has just been cancelled
            place = self._next()
        if place is None:
            self.held -= 1
        else:
            place.set_result(None)

    def _next(self) -> asyncio.Future[None] | None:
        """The first waiter of the tenant whose turn it is; that tenant goes to the end."""
        if not self._queues:
            return None
        tenant, queue = self._queues.popitem(last=False)
        place = queue.popleft()
        self.waiting -= 1
        if queue:
            self._queues[tenant] = queue
        return place

    def _leave(self, tenant: str, place: asyncio.Future[None]) -> None:
        """A waiter was cancelled: out of the queue, or, had he just got the place, pass it on."""
        if place.done() and not place.cancelled() and place.exception() is None:
            self.release()
        elif place in self._queues.get(tenant, ()):
            self._remove(tenant, place)

    def _remove(self, tenant: str, place: asyncio.Future[None]) -> None:
        queue = self._queues[tenant]
        queue.remove(place)
        self.waiting -= 1
        if not queue:
            del self._queues[tenant]

    def _make_room(self, newcomer: str) -> None:
        """Refuse the newest of a longer queue, or the newcomer.

        Raises:
            QueueFull: it is the newcomer.
        """
        own = len(self._queues.get(newcomer, ()))
        longest = max(self._queues, key=lambda name: len(self._queues[name]), default=newcomer)
        if not self._queues or len(self._queues[longest]) < own + 2:
            raise self._full()
        place = self._queues[longest][-1]
        self._remove(longest, place)
        if not place.done():
            place.set_exception(self._full())

    def _full(self) -> QueueFull:
        return QueueFull(f"{self.waiting} runs are waiting already; try again later.")


class _Turn(AbstractAsyncContextManager[None]):
    """One place while its block runs."""

    def __init__(self, turns: Turns, tenant: str, waiting: AbstractContextManager[object]) -> None:
        self._turns = turns
        self._tenant = tenant
        self._waiting = waiting

    async def __aenter__(self) -> None:
        await self._turns.acquire(self._tenant, self._waiting)

    async def __aexit__(self, *_failure: object) -> None:
        self._turns.release()


class Worker:
    """Executes plans in sandboxes of ``pool``, at most ``max_concurrency`` at once."""

    def __init__(
        self,
        pool: Pool,
        clock: Clock,
        *,
        max_concurrency: int = 4,
        queue_limit: int = 100,
        builds: Builds | None = None,
    ) -> None:
        self._builds = Builds(0) if builds is None else builds  # an empty one is false
        self._pool = pool
        self._clock = clock
        self.turns = Turns(max_concurrency, queue_limit)

    async def execute(self, plan: Plan, *, tenant: str) -> Outcome:
        """Run ``plan`` and return how it ended, with ``queue_ms`` and ``prepare_ms`` filled in.

        Raises:
            QueueFull: too many executions wait; nothing was started.
            SandboxUnavailable: the machinery failed.
        """
        arrived = self._clock.monotonic()
        async with self.turns.turn(tenant, self._pool.expected(plan.flavour)):
            return await self._compiled_once(plan, tenant, self._since(arrived))

    async def _compiled_once(self, plan: Plan, tenant: str, queue_ms: int) -> Outcome:
        """Run ``plan``, with the binary of an earlier run of the same sources if there is one."""
        key = await self._builds.key(plan, tenant)
        if key is None:
            return await self._tried(replace(plan, builds="") if plan.builds else plan, queue_ms)
        reusing = self._builds.reuse(key, plan)
        if reusing is not None:
            outcome = await self._tried(reusing, queue_ms)
            return replace(outcome, usage=replace(outcome.usage, compile_ms=0))
        outcome = await self._tried(plan, queue_ms)
        if outcome.built is not None:
            self._builds.keep(key, outcome.built)
        return replace(outcome, built=None)

    async def _tried(self, plan: Plan, queue_ms: int) -> Outcome:
        try:
            return await self._attempt(plan, queue_ms)
        except SandboxUnavailable as exc:
            if exc.step not in BEFORE_START:
                raise
            _log.warning("run_retry", flavour=plan.flavour, step=exc.step)
            # Whatever ended that one may have ended all that waited with it.
            return await self._attempt(plan, queue_ms, anew=True)

    async def _attempt(self, plan: Plan, queue_ms: int, *, anew: bool = False) -> Outcome:
        asked = self._clock.monotonic()
        sandbox = await self._pool.take(plan.flavour, anew=anew)
        try:
            prepare_ms = self._since(asked)
            outcome = await sandbox.run(plan)
        finally:
            self._pool.retire(sandbox)
        usage = replace(outcome.usage, queue_ms=queue_ms, prepare_ms=prepare_ms)
        return replace(outcome, usage=usage)

    def _since(self, start: float) -> int:
        """Whole milliseconds from ``start`` until now."""
        return round((self._clock.monotonic() - start) * 1000)
