"""Prepared sandboxes, waiting: each given out once, destroyed after, replaced in the background.

Theory of operation
-------------------
One event loop; nothing here is touched from another thread. For each flavour there is a shelf
of prepared sandboxes and one *keeper* task, which alone adds to the shelf: it prepares one
sandbox at a time until the shelf holds what it should, then sleeps until somebody takes one or
a few seconds have passed. Refilling must not slow down the runs it is meant to speed up: what a
keeper prepares yields to runs where the backend can have it (``ports.Haste``), and while somebody
waits for a sandbox that has to be made on demand, no keeper begins one that is as dear. (One that
is forked in 2 ms does not wait for one that takes 40.)

How many a shelf should hold follows demand between a floor and a cap (:mod:`.shelf`). All shelves
together stay within ``budget`` and ``budget_bytes``, in which every shelf's floor is reserved; what
a sandbox takes of the latter is what the newest one of its flavour had taken when it was prepared.
Where that is not enough for all, a shelf that holds more than its part of the budget (all have the
same) gives up sandboxes to those that have less, and to dearer ones that have more as well.

Who has to wait for his turn says so (:meth:`Pool.expected`): what he will take is prepared
meanwhile, beside the keeper's, and yields to runs as that does. So is a second one where takers
empty a shelf of what takes little time to prepare: that is made of waiting for others rather than
of work, and one after the other is slower than a single client who asks again and again.

:meth:`Pool.take` never fails because a shelf is empty. It claims what is just being prepared for
the shelf, which then yields no more, or prepares one itself; twice if the first attempt fails.
Whoever took a sandbox hands it to :meth:`Pool.retire`, which destroys it in the background, a
bounded number at once. A sandbox is owned by exactly one of: the task that prepares it, a shelf,
the taker, a destroying task; :meth:`close` waits for all of them. No preparation is ever cancelled,
so that nothing is lost without a task for it.

The pool knows ``prepare`` and ``destroy`` and nothing else of a backend.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from code_executor.errors import SandboxUnavailable
from code_executor.observe import get_logger
from code_executor.ports import Backend, Haste, Sandbox
from code_executor.shelf import Making, Shelf, Size

T = TypeVar("T")

AHEAD_MAX = 4
"""How many are prepared at once for those who wait for their turn, by flavour."""

_log = get_logger("pool")


class _Expected(AbstractContextManager[None]):
    """One more is expected at a shelf while its block runs; who begins it is told.

    A class, like ``worker._Turn``: with a generator each run would take ten calls more.
    """

    def __init__(self, shelf: Shelf, begun: Callable[[Shelf], None]) -> None:
        self._shelf = shelf
        self._begun = begun

    def __enter__(self) -> None:
        self._shelf.expected += 1
        self._begun(self._shelf)

    def __exit__(self, *_failure: object) -> None:
        self._shelf.expected -= 1


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
        self._shelves = {name: Shelf(name, size) for name, size in sizes.items()}
        self._budget = budget
        self._budget_bytes = math.inf if budget_bytes is None else budget_bytes
        self._tick_s = tick_s
        self._backoff_s = backoff_s
        self._on_level = on_level
        self._destroyers = destroyers
        self._doomed: deque[Sandbox] = deque()
        self._ending: set[asyncio.Future[None]] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._keepers: list[tuple[Shelf, asyncio.Task[None]]] = []
        self._served = asyncio.Event()
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

    async def take(self, flavour: str, *, anew: bool = False) -> Sandbox:
        """A prepared sandbox that is alive, ``anew`` none that waits; the caller must
        :meth:`retire` it.

        Raises:
            SandboxUnavailable: two attempts to prepare one failed, or the pool is closed.
            KeyError: no such flavour.
        """
        if self._closed.is_set():
            raise SandboxUnavailable("The service is shutting down.", step="take")
        shelf = self._shelves[flavour]
        shelf.taken()
        self._look_ahead(shelf)
        try:
            waiting = None if anew else self._from_shelf(shelf)
            return waiting or await self._make_on_demand(shelf)
        except BaseException:
            shelf.out -= 1
            raise

    def expected(self, flavour: str) -> AbstractContextManager[None]:
        """Meanwhile somebody waits for his turn to take one.

        Raises:
            KeyError: no such flavour.
        """
        return _Expected(self._shelves[flavour], self._look_ahead)

    def _look_ahead(self, shelf: Shelf) -> None:
        if self._may_prepare_ahead(shelf):
            self._spawn(self._prepare_ahead(shelf))

    def retire(self, sandbox: Sandbox) -> None:
        """Destroy a sandbox that was taken, in the background."""
        self._shelves[sandbox.flavour].out -= 1
        self._destroy_later(sandbox)

    async def close(self) -> None:
        """Destroy everything that waits, and return when nothing of it is left."""
        self._closed.set()
        for shelf, keeper in self._keepers:
            if not any(making.by_keeper for making in shelf.making):
                keeper.cancel()
        await asyncio.gather(*(keeper for _, keeper in self._keepers), return_exceptions=True)
        for shelf in self._shelves.values():
            while shelf.ready:
                self._destroy_later(shelf.ready.popleft())
        while self._tasks or self._ending or self._doomed:
            self._destroy_next()
            await asyncio.gather(*self._tasks, *self._ending, return_exceptions=True)

    def _from_shelf(self, shelf: Shelf) -> Sandbox | None:
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

    async def _make_on_demand(self, shelf: Shelf) -> Sandbox:
        shelf.missed()
        shelf.awaited += 1
        try:
            try:
                return await self._unless_gone(self._claim(shelf) or self._prepare(shelf, Haste()))
            except SandboxUnavailable as exc:
                _log.warning("prepare_retry", flavour=shelf.flavour, step=exc.step)
                return await self._unless_gone(self._prepare(shelf, Haste()))
        finally:
            shelf.awaited -= 1
            self._served.set()

    def _claim(self, shelf: Shelf) -> asyncio.Task[Sandbox] | None:
        """What is being prepared for the shelf and nobody else has claimed, the oldest."""
        for making in shelf.making:
            if not making.claimed and not making.task.done():
                making.claimed = True
                making.haste.need()
                return making.task
        return None

    def _prepare(self, shelf: Shelf, haste: Haste) -> asyncio.Task[Sandbox]:
        """Prepare one, to the end."""
        return self._spawn(self._timed(shelf, haste))

    async def _timed(self, shelf: Shelf, haste: Haste) -> Sandbox:
        loop = asyncio.get_running_loop()
        began = loop.time()
        sandbox = await self._backend.prepare(shelf.flavour, haste)
        shelf.prepared(sandbox, loop.time() - began)
        return sandbox

    async def _unless_gone(self, making: asyncio.Task[Sandbox]) -> Sandbox:
        """The sandbox; if the taker goes away meanwhile, it is destroyed, not lost."""
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(self._destroy_unwanted)
            raise

    def _destroy_unwanted(self, making: asyncio.Task[Sandbox]) -> None:
        if not making.cancelled() and making.exception() is None:
            self._destroy_later(making.result())

    def _destroy_later(self, sandbox: Sandbox) -> None:
        """In a later turn of the loop, so that an answer which is ready leaves first."""
        self._doomed.append(sandbox)
        asyncio.get_running_loop().call_soon(self._destroy_next)

    def _destroy_next(self) -> None:
        while self._doomed and len(self._ending) < self._destroyers:
            ending = asyncio.ensure_future(self._doomed.popleft().destroy())
            self._ending.add(ending)
            ending.add_done_callback(self._destroyed)

    def _destroyed(self, ending: asyncio.Future[None]) -> None:
        self._ending.discard(ending)
        self._destroy_next()

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _keep(self, shelf: Shelf) -> None:
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

    async def _fill(self, shelf: Shelf) -> None:
        while not self._closed.is_set() and self._wants_more(shelf):
            if self._is_in_the_way(shelf):
                await self._served.wait()  # others may have taken the room meanwhile: look again
            else:
                await self._add(shelf, by_keeper=True)
        shelf.full()

    async def _add(self, shelf: Shelf, *, by_keeper: bool) -> None:
        """Prepare one for the shelf, or for whoever claims it meanwhile."""
        haste = Haste(needed=False, spare=shelf.coming() >= shelf.size.floor)
        making = Making(self._prepare(shelf, haste), haste, by_keeper)
        shelf.making.append(making)
        try:
            prepared = await making.task
        finally:
            shelf.making.remove(making)
        if making.claimed:
            return
        if self._closed.is_set() and not by_keeper:  # the shelf may have been cleared by now
            self._destroy_later(prepared)
            return
        shelf.put(prepared)
        self._on_level({shelf.flavour: len(shelf.ready)})

    def _may_prepare_ahead(self, shelf: Shelf) -> bool:
        beside = sum(not making.by_keeper for making in shelf.making)
        most = AHEAD_MAX if shelf.lacks() else int(shelf.is_behind())
        return beside < most and not self._closed.is_set() and self._has_room(shelf)

    async def _prepare_ahead(self, shelf: Shelf) -> None:
        """Beside the keeper's; what fails is tried again by the keeper, or by whoever takes."""
        try:
            while self._may_prepare_ahead(shelf):
                await self._add(shelf, by_keeper=False)
        except Exception as exc:
            _log.warning("prepare_ahead_failed", flavour=shelf.flavour, error=str(exc))
            shelf.wake.set()  # the keeper may have counted on it

    def _is_in_the_way(self, shelf: Shelf) -> bool:
        """Whether somebody waits for a sandbox that is no dearer; ``_served`` is when no more."""
        shelves = self._shelves.values()
        waits = any(each.awaited and not each.dearer_than(shelf) for each in shelves)
        if waits:
            self._served.clear()
        return waits

    async def _wait(self, shelf: Shelf) -> None:
        """Until somebody takes one; each tick without that lets the shelf shrink."""
        shelf.wake.clear()
        try:
            async with asyncio.timeout(self._tick_s):  # wait_for may lose a cancellation
                await shelf.wake.wait()
        except TimeoutError:
            shelf.settle()
            self._trim(shelf)

    def _trim(self, shelf: Shelf) -> None:
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

    def _wants_more(self, shelf: Shelf) -> bool:
        """Whether to prepare one; the floor, which the budget has reserved, is never refused."""
        if shelf.coming() < shelf.size.floor:
            return True
        return (
            len(shelf.ready) < shelf.target()
            and shelf.coming() < shelf.size.cap
            and self._has_room(shelf)
        )

    def _has_room(self, shelf: Shelf) -> bool:
        """Whether the budgets allow one more of a flavour; others may make room for it."""
        while not self._fits(shelf):
            giving = self._giving(shelf)
            if giving is None:
                return False
            self._destroy_later(giving.ready.popleft())
            self._on_level({giving.flavour: len(giving.ready)})
        return True

    def _giving(self, shelf: Shelf) -> Shelf | None:
        """Who gives one up for it: who has most, of those that have more than their part."""
        part = 1 / len(self._shelves)
        modest = self._share(shelf, shelf.held() + 1) <= part
        able = [
            each
            for each in self._shelves.values()
            if each.spare() and self._share(each, each.held()) > part
            if modest or shelf.dearer_than(each)
        ]
        return max(able, key=lambda each: self._share(each, each.held()), default=None)

    def _share(self, shelf: Shelf, count: int) -> float:
        """What part of the budgets so many of a flavour are, of the one they need more of."""
        return max(count / self._budget, count * shelf.bytes_each / self._budget_bytes)

    def _fits(self, shelf: Shelf) -> bool:
        count, memory = 1, shelf.bytes_each
        for each in self._shelves.values():
            held = each.held()
            count += held
            memory += held * each.bytes_each
        return count <= self._budget and memory <= self._budget_bytes
