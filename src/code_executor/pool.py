"""Prepared sandboxes, waiting: each given out once, destroyed after, replaced in the background.

Theory of operation
-------------------
One event loop; nothing here is touched from another thread. For each flavour there is a shelf
of prepared sandboxes and one *keeper* task, which alone adds to the shelf: it prepares one
sandbox at a time until the shelf holds what it should, then sleeps until somebody takes one or
a few seconds have passed. One at a time, and not at all while somebody waits for a sandbox
that has to be made on demand: refilling must not slow down the runs it is meant to speed up.

How many a shelf should hold follows demand between a floor and a cap: a moving average of how
many of that flavour were out at once (``_Shelf.demand``), that decays while nobody asks, and one
more for each taker who found the shelf empty (``_Shelf.missed``), decaying slowly: an interpreter
that takes long to start needs a stock for the next burst. All shelves together stay within
``budget`` and ``budget_bytes``, in which every shelf's floor is reserved; what a sandbox takes of
the latter is what the newest one of its flavour had taken when it was prepared.

:meth:`Pool.take` never fails because a shelf is empty: it prepares one itself, twice if the
first attempt fails. Whoever took a sandbox hands it to :meth:`Pool.retire`, which destroys it
in the background, a bounded number at once. A sandbox is owned by exactly one of: the task
that prepares it, a shelf, the taker, a destroying task; :meth:`close` waits for all of them. No
keeper is cancelled while it prepares, so that nothing is lost without a task for it.

The pool knows ``prepare`` and ``destroy`` and nothing else of a backend.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from code_executor.errors import SandboxUnavailable
from code_executor.observe import get_logger
from code_executor.ports import Backend, Sandbox

T = TypeVar("T")

_log = get_logger("pool")

WEIGHT = 0.2
"""Of the newest observation in the moving average of demand."""


DECAY = 0.95
"""What is left of the memory of missed ones after a tick in which nobody asked."""


@dataclass(frozen=True, slots=True)
class Size:
    """How many prepared sandboxes of a flavour to keep: at least, and at most."""

    floor: int = 1
    cap: int = 4


@dataclass(slots=True)
class _Shelf:
    """The prepared sandboxes of one flavour, oldest first."""

    flavour: str
    size: Size
    ready: deque[Sandbox] = field(default_factory=deque)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    filling: int = 0
    out: int = 0
    bytes_each: int = 0
    demand: float = 0.0
    peak: int = 0
    missed: float = 0.0

    def held(self) -> int:
        """Its part of the budget: what it has or will have, at least its floor."""
        return max(len(self.ready) + self.filling, self.size.floor)

    def held_bytes(self) -> int:
        """Its part of the budget of memory."""
        return self.held() * self.bytes_each

    def observe(self) -> None:
        """A taker is here: move the average, and wake the keeper."""
        self.peak = max(self.peak, self.out)
        self.demand += WEIGHT * (self.out - self.demand)
        self.wake.set()

    def miss(self) -> None:
        """A taker found nothing."""
        self.missed = min(self.missed + 1, self.size.cap)

    def settle(self) -> None:
        """Some time has passed: what was out at most in it counts once."""
        self.demand += WEIGHT * (self.peak - self.demand)
        self.peak = self.out
        self.missed *= DECAY

    def target(self) -> int:
        """How many should be ready: as many as are usually out at once, or were missed of late."""
        usual = max(self.demand if self.demand > WEIGHT else 0, self.missed)
        return min(self.size.cap, max(self.size.floor, math.ceil(usual)))


class Pool:
    """See the module's theory of operation.

    ``sizes`` names every flavour that may be taken; ``budget`` bounds how many sandboxes
    wait in all, ``budget_bytes`` how much memory they have together (``None``: no bound).
    ``tick_s`` is how often a keeper looks after its shelf unasked,
    ``backoff_s`` the pause after a failed refill (doubled each time, 30 s at most).
    ``on_level`` is told a flavour's number of ready sandboxes when it may have changed.
    """

    def __init__(
        self,
        backend: Backend,
        sizes: Mapping[str, Size],
        *,
        budget: int = 16,
        budget_bytes: int | None = None,
        tick_s: float = 5.0,
        backoff_s: float = 0.5,
        destroyers: int = 4,
        on_level: Callable[[Mapping[str, int]], None] = lambda _levels: None,
    ) -> None:
        self._backend = backend
        self._shelves = {name: _Shelf(name, size) for name, size in sizes.items()}
        self._budget = budget
        self._budget_bytes = math.inf if budget_bytes is None else budget_bytes
        self._tick_s = tick_s
        self._backoff_s = backoff_s
        self._on_level = on_level
        self._destroyers = asyncio.Semaphore(destroyers)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._keepers: list[tuple[_Shelf, asyncio.Task[None]]] = []
        self._on_demand = 0
        self._calm = asyncio.Event()
        self._calm.set()
        self._closed = asyncio.Event()

    def levels(self) -> dict[str, int]:
        """How many sandboxes are ready, by flavour."""
        return {name: len(shelf.ready) for name, shelf in self._shelves.items()}

    def start(self, flavours: Collection[str] | None = None) -> None:
        """Begin to fill the shelves, in the background: all, or those of ``flavours``."""
        wanted = self._shelves if flavours is None else flavours
        self._keepers = [
            (shelf, asyncio.create_task(self._keep(shelf)))
            for name, shelf in self._shelves.items()
            if name in wanted
        ]

    async def take(self, flavour: str) -> Sandbox:
        """A prepared sandbox that is alive; the caller must :meth:`retire` it.

        Raises:
            SandboxUnavailable: two attempts to prepare one failed, or the pool is closed.
            KeyError: no such flavour.
        """
        if self._closed.is_set():
            raise SandboxUnavailable("The service is shutting down.", step="take")
        shelf = self._shelves[flavour]
        shelf.out += 1
        shelf.observe()
        try:
            return self._from_shelf(shelf) or await self._make_on_demand(flavour)
        except BaseException:
            shelf.out -= 1
            raise

    def retire(self, sandbox: Sandbox) -> None:
        """Destroy a sandbox that was taken, in the background."""
        self._shelves[sandbox.flavour].out -= 1
        self._destroy_later(sandbox)

    async def close(self) -> None:
        """Destroy everything that waits, and return when nothing of it is left."""
        self._closed.set()
        for shelf, keeper in self._keepers:
            if not shelf.filling:
                keeper.cancel()
        await asyncio.gather(*(keeper for _, keeper in self._keepers), return_exceptions=True)
        for shelf in self._shelves.values():
            while shelf.ready:
                self._destroy_later(shelf.ready.popleft())
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _from_shelf(self, shelf: _Shelf) -> Sandbox | None:
        """The oldest live one, if any; the dead are cleared away."""
        found = None
        while shelf.ready and found is None:
            oldest = shelf.ready.popleft()
            if oldest.alive():
                found = oldest
            else:
                self._destroy_later(oldest)
        self._on_level({shelf.flavour: len(shelf.ready)})
        return found

    async def _make_on_demand(self, flavour: str) -> Sandbox:
        self._shelves[flavour].miss()
        self._on_demand += 1
        self._calm.clear()
        try:
            try:
                return await self._prepare(flavour)
            except SandboxUnavailable as exc:
                _log.warning("prepare_retry", flavour=flavour, step=exc.step)
                return await self._prepare(flavour)
        finally:
            self._on_demand -= 1
            if not self._on_demand:
                self._calm.set()

    async def _prepare(self, flavour: str) -> Sandbox:
        """Prepare one; if the caller goes away meanwhile, the sandbox is destroyed, not lost."""
        making = self._spawn(self._backend.prepare(flavour))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(self._destroy_unwanted)
            raise

    def _destroy_unwanted(self, making: asyncio.Task[Sandbox]) -> None:
        if not making.cancelled() and making.exception() is None:
            self._destroy_later(making.result())

    def _destroy_later(self, sandbox: Sandbox) -> None:
        self._spawn(self._destroy(sandbox))

    async def _destroy(self, sandbox: Sandbox) -> None:
        async with self._destroyers:
            await sandbox.destroy()

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _keep(self, shelf: _Shelf) -> None:
        """The keeper of one shelf: ends with the pool, and not by what a backend raises."""
        pause = self._backoff_s
        while not self._closed.is_set():
            try:
                await self._fill(shelf)
            except Exception as exc:
                if self._closed.is_set():
                    return
                _log.warning("refill_failed", flavour=shelf.flavour, error=str(exc), pause_s=pause)
                await asyncio.sleep(pause)
                pause = min(30.0, pause * 2)
                continue
            pause = self._backoff_s
            if not self._closed.is_set():
                await self._wait(shelf)

    async def _fill(self, shelf: _Shelf) -> None:
        while not self._closed.is_set() and self._wants_more(shelf):
            await self._calm.wait()
            shelf.filling = 1
            try:
                prepared = await self._backend.prepare(shelf.flavour)
                shelf.bytes_each = prepared.memory_bytes()
                shelf.ready.append(prepared)
            finally:
                shelf.filling = 0
            self._on_level({shelf.flavour: len(shelf.ready)})

    async def _wait(self, shelf: _Shelf) -> None:
        """Until somebody takes one; each tick without that lets the shelf shrink."""
        shelf.wake.clear()
        try:
            async with asyncio.timeout(self._tick_s):  # wait_for may lose a cancellation
                await shelf.wake.wait()
        except TimeoutError:
            shelf.settle()
            self._trim(shelf)

    def _trim(self, shelf: _Shelf) -> None:
        """Clear away the dead and what is more than wanted."""
        keep: deque[Sandbox] = deque()
        while shelf.ready:
            sandbox = shelf.ready.popleft()
            if sandbox.alive() and len(keep) < shelf.target():
                keep.append(sandbox)
            else:
                self._destroy_later(sandbox)
        shelf.ready = keep
        self._on_level({shelf.flavour: len(shelf.ready)})

    def _wants_more(self, shelf: _Shelf) -> bool:
        if len(shelf.ready) < shelf.size.floor:
            return True
        if len(shelf.ready) >= shelf.target():
            return False
        shelves = self._shelves.values()
        memory = sum(each.held_bytes() for each in shelves) + shelf.bytes_each
        return sum(each.held() for each in shelves) < self._budget and memory <= self._budget_bytes
