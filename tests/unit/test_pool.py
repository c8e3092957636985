"""The pool: given out once, replaced, destroyed, never empty-handed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack

import pytest
from tests.unit.pools import Costly, Slow, running, until

from code_executor.errors import SandboxUnavailable
from code_executor.pool import AHEAD_MAX, Pool
from code_executor.ports import Haste
from code_executor.sandbox.fake import FakeBackend, FakeSandbox
from code_executor.shelf import Size


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
        async def prepare(self, flavour: str, haste: Haste | None = None) -> FakeSandbox:
            await asyncio.sleep(0.05 if flavour == "go" else 0.001)
            return await super().prepare(flavour, haste)

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

        async def prepare(self, flavour: str, haste: Haste | None = None) -> FakeSandbox:
            sandbox = await super().prepare(flavour, haste)
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


async def test_what_is_prepared_ahead_is_not_needed_yet_and_what_is_asked_for_is() -> None:
    backend = FakeBackend()
    async with running(backend, {"python": Size(1, 1), "go": Size(0, 0)}) as pool:
        await until(lambda: pool.levels()["python"] == 1)
        assert [haste.needed for haste in backend.hastes] == [False]
        pool.retire(await pool.take("go"))
        assert [haste.needed for haste in backend.hastes] == [False, True]


async def test_what_is_more_than_the_floor_is_prepared_as_spare() -> None:
    backend = FakeBackend()
    async with running(backend, {"python": Size(1, 4)}, tick_s=5) as pool:
        await until(lambda: pool.levels()["python"] == 1)
        for sandbox in [await pool.take("python") for _ in range(3)]:
            pool.retire(sandbox)
        await until(lambda: pool.levels()["python"] > 1)
        assert (backend.hastes[0].spare, backend.hastes[-1].spare) == (False, True)


async def test_a_taker_claims_what_is_being_prepared_and_it_hurries() -> None:
    backend = Slow()
    async with running(backend, {"python": Size(1, 1)}) as pool:
        await until(lambda: len(backend.gates) == 1)
        told: list[bool] = []
        await until(lambda: bool(backend.hastes))
        backend.hastes[0].on_need(lambda: told.append(True))
        first = asyncio.create_task(pool.take("python"))
        await until(lambda: told == [True])
        second = asyncio.create_task(pool.take("python"))  # there is nothing left to claim
        await until(lambda: len(backend.gates) == 2)
        assert backend.hastes[1].needed
        backend.gates[0].set()
        sandbox = await first
        assert not second.done()
        assert pool.levels() == {"python": 0}
        backend.gates[1].set()
        assert await second is not sandbox
        backend.open()  # and the keeper's next one, for the shelf
        await until(lambda: pool.levels() == {"python": 1})


async def test_who_is_expected_finds_one_prepared_that_yields_until_he_comes() -> None:
    backend = Slow()
    async with running(backend, {"python": Size(0, 2)}) as pool:
        with pool.expected("python"):
            await until(lambda: bool(backend.hastes))
            assert [haste.needed for haste in backend.hastes] == [False]
            taker = asyncio.create_task(pool.take("python"))
            await until(lambda: backend.hastes[0].needed)  # claimed: no other is begun
            assert len(backend.gates) == 1
            backend.open()
            pool.retire(await taker)


async def test_beside_the_keeper_s_a_second_is_prepared_when_takers_are_faster() -> None:
    backend = Slow()

    def for_the_shelf() -> int:
        begun = zip(backend.gates, backend.hastes, strict=False)
        return sum(not gate.is_set() and not haste.needed for gate, haste in begun)

    async with running(backend, {"python": Size(0, 8)}, tick_s=5) as pool:
        takers = [asyncio.create_task(pool.take("python")) for _ in range(4)]
        while not all(taker.done() for taker in takers):
            for gate, haste in zip(backend.gates, backend.hastes, strict=False):
                if haste.needed:
                    gate.set()
            await asyncio.sleep(0.002)
        await until(lambda: for_the_shelf() == 2)
        await asyncio.sleep(0.05)
        assert for_the_shelf() == 2
        backend.open()


async def test_no_more_are_prepared_than_are_expected_or_kept_or_at_once() -> None:
    backend = Slow()
    async with running(backend, {"python": Size(0, 6), "go": Size(0, 0)}) as pool:
        with ExitStack() as waiting:
            for expected in range(1, 9):
                waiting.enter_context(pool.expected("go"))  # of which none is ever kept
                waiting.enter_context(pool.expected("python"))
                await asyncio.sleep(0.005)
                assert len(backend.gates) == min(expected, AHEAD_MAX)
            backend.open()
            await until(lambda: pool.levels() == {"python": 6, "go": 0})
            await asyncio.sleep(0.01)
            assert len(backend.gates) == 6


async def test_a_keeper_who_gave_way_takes_no_room_that_is_taken_by_then() -> None:
    backend = Slow()
    async with running(backend, {"python": Size(0, 3)}, budget=2) as pool:
        takers = [asyncio.create_task(pool.take("python")) for _ in range(2)]
        await until(lambda: len(backend.gates) == 2)
        with pool.expected("python"), pool.expected("python"):
            await until(lambda: len(backend.gates) == 4)
            for gate in backend.gates[2:] + backend.gates[:2]:
                gate.set()
            for taker in takers:
                pool.retire(await taker)
            await until(lambda: pool.levels() == {"python": 2})
            await asyncio.sleep(0.005)
            assert len(backend.gates) == 4
        backend.open()


async def test_what_is_prepared_for_somebody_expected_counts_for_the_floor() -> None:
    backend = Slow()
    async with running(backend, {"python": Size(1, 3)}, budget=2) as pool:
        await until(lambda: len(backend.gates) == 1)
        takers = [asyncio.create_task(pool.take("python")) for _ in range(2)]
        await until(lambda: len(backend.gates) == 2)
        with pool.expected("python"), pool.expected("python"):
            await until(lambda: len(backend.gates) == 4)
            for gate in backend.gates[:2]:
                gate.set()
            for taker in takers:
                pool.retire(await taker)
            await asyncio.sleep(0.005)
            assert len(backend.gates) == 4
        backend.open()


async def test_what_is_prepared_for_somebody_expected_may_fail() -> None:
    backend = Slow()
    async with running(backend, {"python": Size(0, 2)}) as pool:
        with pool.expected("python"):
            await until(lambda: len(backend.gates) == 1)
            backend.failing = True
            backend.gates[0].set()
            await asyncio.sleep(0.005)
            backend.failing = False
            backend.open()
            pool.retire(await pool.take("python"))


async def test_what_is_prepared_for_somebody_expected_is_destroyed_when_the_pool_closes() -> None:
    backend = Slow()
    async with running(backend, {"python": Size(0, 2)}) as pool:
        with pool.expected("python"):
            await until(lambda: len(backend.gates) == 1)
            closing = asyncio.create_task(pool.close())
            await asyncio.sleep(0.005)
            assert not closing.done()
            backend.open()
            await closing
        assert not backend.live
        with pool.expected("python"):
            await asyncio.sleep(0.005)
        assert not backend.live


async def test_a_taker_of_a_claimed_one_that_fails_prepares_his_own() -> None:
    backend = Slow()
    async with running(backend, {"python": Size(1, 1)}) as pool:
        await until(lambda: bool(backend.hastes))
        taker = asyncio.create_task(pool.take("python"))
        await until(lambda: backend.hastes[0].needed)
        backend.failing = True
        backend.gates[0].set()
        await until(lambda: len(backend.gates) > 1)
        backend.failing = False
        backend.open()
        assert (await taker).alive()


async def test_a_taker_of_a_claimed_one_who_goes_away_leaves_none_behind() -> None:
    backend = Slow()
    async with running(backend, {"python": Size(1, 1)}) as pool:
        await until(lambda: bool(backend.hastes))
        taker = asyncio.create_task(pool.take("python"))
        await until(lambda: backend.hastes[0].needed)
        taker.cancel()
        backend.gates[0].set()
        backend.open()
        await until(lambda: pool.levels() == {"python": 1})
        await until(lambda: len(backend.live) == 1)


async def empty(pool: Pool, flavour: str, takers: int) -> None:
    """A burst: one after another, faster than the shelf is filled again."""
    for taken in await asyncio.gather(*(pool.take(flavour) for _ in range(takers))):
        pool.retire(taken)


async def test_a_cheap_shelf_is_filled_while_somebody_waits_for_a_dear_one() -> None:
    backend = Slow()
    async with running(backend, {"cheap": Size(0, 4), "dear": Size(0, 0)}) as pool:
        pool._shelves["dear"].cost_s = 0.04
        pool._shelves["cheap"].cost_s = 0.002
        waiting = asyncio.create_task(pool.take("dear"))
        await until(lambda: len(backend.gates) == 1)
        pool._shelves["cheap"].stock = 4
        pool._shelves["cheap"].wake.set()
        await until(lambda: len(backend.gates) == 2)
        backend.gates[1].set()
        await until(lambda: pool.levels()["cheap"] == 1)
        assert not waiting.done()
        backend.open()
        pool.retire(await waiting)


async def test_a_dear_burst_leaves_a_cheap_shelf_its_part_of_the_budget() -> None:
    sizes = {"cheap": Size(1, 12), "dear": Size(1, 12)}
    async with running(Costly(), sizes, budget=12, tick_s=60) as pool:
        await until(lambda: min(pool.levels().values()) == 1)
        await empty(pool, "cheap", 12)
        await until(lambda: pool.levels()["cheap"] == 11)
        await empty(pool, "dear", 12)
        # It took what the cheap one had beyond its half.
        await until(lambda: pool.levels() == {"cheap": 6, "dear": 6})
        await asyncio.sleep(0.1)
        assert pool.levels() == {"cheap": 6, "dear": 6}


async def test_a_cheap_shelf_gets_its_part_back_of_a_dear_one() -> None:
    sizes = {"cheap": Size(1, 12), "dear": Size(1, 12)}
    async with running(Costly(), sizes, budget=12, tick_s=60) as pool:
        await until(lambda: min(pool.levels().values()) == 1)
        await empty(pool, "dear", 12)
        await until(lambda: pool.levels()["dear"] == 11)
        await empty(pool, "cheap", 12)
        await until(lambda: pool.levels() == {"cheap": 6, "dear": 6})


async def test_the_parts_are_of_memory_where_that_is_what_is_short() -> None:
    backend = Costly()
    backend.takes = {"dear": 10, "cheap": 1}
    sizes = {"cheap": Size(1, 20), "dear": Size(1, 20)}
    async with running(backend, sizes, budget=1000, budget_bytes=100, tick_s=60) as pool:
        await until(lambda: min(pool.levels().values()) == 1)
        await empty(pool, "dear", 20)
        await until(lambda: pool.levels()["dear"] == 9)
        await empty(pool, "cheap", 20)
        await until(lambda: pool.levels()["cheap"] == 20)
        assert pool.levels()["dear"] == 8
