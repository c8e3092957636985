"""The pool: given out once, replaced, destroyed, never empty-handed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from code_executor.errors import SandboxUnavailable
from code_executor.pool import Pool, Size
from code_executor.sandbox.fake import FakeBackend, FakeSandbox

SIZES = {"python": Size(2, 6)}


@asynccontextmanager
async def running(
    backend: FakeBackend, sizes: Mapping[str, Size] = SIZES, **options: Any
) -> AsyncIterator[Pool]:
    pool = Pool(backend, sizes, **({"tick_s": 0.02, "backoff_s": 0.01} | options))
    pool.start()
    try:
        yield pool
    finally:
        await asyncio.wait_for(pool.close(), 5)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.002)


async def test_the_floor_is_prepared_ahead() -> None:
    async with running(FakeBackend()) as pool:
        await until(lambda: pool.levels() == {"python": 2})


async def test_each_is_given_out_once_and_replaced() -> None:
    backend = FakeBackend()
    async with running(backend) as pool:
        await until(lambda: pool.levels()["python"] == 2)
        taken = [await pool.take("python") for _ in range(5)]
        assert len(set(map(id, taken))) == 5
        await until(lambda: pool.levels()["python"] >= 2)
        for sandbox in taken:
            pool.retire(sandbox)


async def test_a_taken_one_is_destroyed_and_never_shelved_again() -> None:
    backend = FakeBackend()
    async with running(backend) as pool:
        sandbox = await pool.take("python")
        pool.retire(sandbox)
        await until(lambda: sandbox not in backend.live)
        await until(lambda: pool.levels()["python"] == 2)
        assert await pool.take("python") is not sandbox


async def test_an_empty_shelf_is_no_failure() -> None:
    async with running(FakeBackend(), {"go": Size(0, 0)}) as pool:
        assert (await pool.take("go")).flavour == "go"
        assert pool.levels() == {"go": 0}


async def test_the_dead_are_skipped_and_destroyed() -> None:
    backend = FakeBackend()
    async with running(backend, tick_s=60) as pool:
        await until(lambda: pool.levels()["python"] == 2)
        dead = set(backend.live)
        for sandbox in dead:
            sandbox.dead = True
        assert (await pool.take("python")).alive()
        await until(lambda: not dead & backend.live)


async def test_the_dead_are_replaced_unasked() -> None:
    backend = FakeBackend()
    async with running(backend) as pool:
        await until(lambda: pool.levels()["python"] == 2)
        for sandbox in backend.live:
            sandbox.dead = True
        await until(lambda: len([s for s in backend.live if s.alive()]) == 2)


async def test_preparing_on_demand_is_tried_twice() -> None:
    backend = FakeBackend()
    backend.prepare_failures.append(SandboxUnavailable("no", step="clone"))
    async with running(backend, {"go": Size(0, 0)}) as pool:
        assert (await pool.take("go")).alive()
        backend.prepare_failures.extend(SandboxUnavailable("no", step="clone") for _ in range(2))
        with pytest.raises(SandboxUnavailable, match="clone"):
            await pool.take("go")
        assert (await pool.take("go")).alive()


@pytest.mark.parametrize("failure", [SandboxUnavailable("no", step="clone"), OSError("no")])
async def test_a_failing_refill_is_tried_again_later(failure: Exception) -> None:
    backend = FakeBackend()
    backend.prepare_failures.extend([failure] * 3)
    async with running(backend) as pool:
        await until(lambda: pool.levels()["python"] == 2)
        assert not backend.prepare_failures


async def test_a_shelf_follows_demand_up_to_the_cap_and_back() -> None:
    async with running(FakeBackend(), {"python": Size(1, 4)}) as pool:
        out = [await pool.take("python") for _ in range(12)]
        await until(lambda: pool.levels()["python"] == 4)
        for sandbox in out:
            pool.retire(sandbox)
        await until(lambda: pool.levels()["python"] == 1)


async def test_shelves_share_a_budget_in_which_floors_are_reserved() -> None:
    sizes = {"python": Size(1, 10), "node": Size(2, 10)}
    now: dict[str, int] = {}
    most = 0

    def watch(levels: Mapping[str, int]) -> None:
        nonlocal most
        now.update(levels)
        most = max(most, sum(now.values()))

    async with running(FakeBackend(), sizes, budget=5, on_level=watch) as pool:
        for _ in range(10):
            await pool.take("python")
            await pool.take("node")
        await until(lambda: sum(pool.levels().values()) == 5)
        await asyncio.sleep(0.05)
        assert (most, now) == (5, pool.levels())
        assert pool.levels()["node"] >= 2


async def test_refilling_waits_while_somebody_waits() -> None:
    class SlowGo(FakeBackend):
        async def prepare(self, flavour: str) -> FakeSandbox:
            await asyncio.sleep(0.05 if flavour == "go" else 0.001)
            return await super().prepare(flavour)

    async with running(SlowGo(), {"python": Size(5, 5), "go": Size(0, 0)}) as pool:
        await pool.take("go")
        # The keeper may have begun one before the taker came, and none while he waited.
        assert pool.levels()["python"] <= 1
        await until(lambda: pool.levels()["python"] == 5)


async def test_a_taker_who_goes_away_leaves_no_sandbox_behind() -> None:
    backend = FakeBackend(prepare_s=0.02)
    async with running(backend, {"go": Size(0, 0)}) as pool:
        taker = asyncio.create_task(pool.take("go"))
        await asyncio.sleep(0.005)
        taker.cancel()
        await until(lambda: backend.prepared == 1)
        await until(lambda: not backend.live)
        assert taker.cancelled()


async def test_destroying_is_bounded() -> None:
    class Counting(FakeBackend):
        now = most = 0

        async def prepare(self, flavour: str) -> FakeSandbox:
            sandbox = await super().prepare(flavour)
            destroy = sandbox.destroy

            async def counted() -> None:
                self.now += 1
                self.most = max(self.most, self.now)
                await destroy()
                self.now -= 1

            sandbox.destroy = counted  # type: ignore[method-assign]  # to watch it
            return sandbox

    backend = Counting(destroy_s=0.005)
    async with running(backend, destroyers=2) as pool:
        for sandbox in [await pool.take("python") for _ in range(8)]:
            pool.retire(sandbox)
        await until(lambda: backend.most == 2)
    assert backend.most == 2


async def test_close_leaves_nothing_and_refuses_takers() -> None:
    backend = FakeBackend(destroy_s=0.01, prepare_s=0.005)
    async with running(backend) as pool:
        await until(lambda: pool.levels()["python"] == 2)
        pool.retire(await pool.take("python"))
    assert not backend.live
    with pytest.raises(SandboxUnavailable, match="shutting down"):
        await pool.take("python")


async def test_close_destroys_what_is_being_prepared() -> None:
    backend = FakeBackend(prepare_s=0.03)
    async with running(backend):
        await asyncio.sleep(0.005)
    assert (backend.prepared, backend.live) == (1, set())


async def test_what_takes_long_to_prepare_is_kept_in_stock_for_the_next_burst() -> None:
    backend = FakeBackend()
    backend.prepare_s = 0.05
    pool = Pool(backend, {"slow": Size(1, 12)}, budget=12)
    pool.start()
    for _ in range(20):
        pool.retire(await pool.take("slow"))
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.8)
    assert pool.levels()["slow"] > 1
    await pool.close()
    assert not backend.live


async def test_demand_is_followed_within_the_budget_of_memory_but_never_below_the_floor() -> None:
    backend = FakeBackend()
    backend.sandbox_bytes = 10
    async with running(backend, {"python": Size(2, 6)}, budget_bytes=35) as pool:
        taken = [await pool.take("python") for _ in range(6)]
        await until(lambda: pool.levels()["python"] == 3)
        await asyncio.sleep(0.1)
        assert pool.levels() == {"python": 3}
        for sandbox in taken:
            pool.retire(sandbox)
    backend.sandbox_bytes = 1000
    async with running(backend, {"python": Size(2, 6)}, budget_bytes=35) as pool:
        await until(lambda: pool.levels() == {"python": 2})
