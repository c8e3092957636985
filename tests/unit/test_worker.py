"""The worker: turns between tenants, admission, one retry, nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from code_executor.builds import Builds
from code_executor.errors import QueueFull, SandboxUnavailable
from code_executor.languages import load
from code_executor.model import RunRequest, RunStatus
from code_executor.plan import make_plan
from code_executor.pool import Pool
from code_executor.sandbox.fake import FakeBackend, said
from code_executor.shelf import Size
from code_executor.worker import Turns, Worker

PYTHON = next(language for language in load() if language.id == "python")
GO = next(language for language in load() if language.id == "go")
GO_PLAN = make_plan(RunRequest("go", "package main"), GO, inputs=())
PLAN = make_plan(RunRequest("python", "print(1)"), PYTHON, inputs=())


class Stepping:
    """A clock that goes on by 10 ms each time it is asked."""

    def __init__(self) -> None:
        self._ticks: Iterator[int] = count()

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return next(self._ticks) / 100


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
async def pool(backend: FakeBackend) -> AsyncIterator[Pool]:
    pool = Pool(backend, {"python": Size(0, 0)})
    yield pool
    await asyncio.wait_for(pool.close(), 5)


def worker(pool: Pool, concurrency: int = 2, queue: int = 4) -> Worker:
    return Worker(pool, Stepping(), max_concurrency=concurrency, queue_limit=queue)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_plan_is_executed_and_its_waiting_measured(pool: Pool) -> None:
    outcome = await worker(pool).execute(PLAN, tenant="a")
    assert outcome.status is RunStatus.SUCCEEDED
    assert (outcome.usage.queue_ms, outcome.usage.prepare_ms) == (10, 10)


async def test_the_sandbox_is_destroyed_whatever_happened(pool: Pool, backend: FakeBackend) -> None:
    backend.run_failures.append(SandboxUnavailable("broke", step="frames"))
    with pytest.raises(SandboxUnavailable, match="frames"):
        await worker(pool).execute(PLAN, tenant="a")
    await pool.close()
    assert (backend.live, backend.prepared) == (set(), 1)


@pytest.mark.parametrize("step", ["start", "release", "warm interpreter died"])
async def test_what_died_before_the_start_is_tried_once_more(
    pool: Pool, backend: FakeBackend, step: str
) -> None:
    backend.run_failures.append(SandboxUnavailable("died", step=step))
    assert (await worker(pool).execute(PLAN, tenant="a")).exit_code == 0
    assert backend.prepared == 2


async def test_it_is_tried_in_none_that_waited_with_what_died(backend: FakeBackend) -> None:
    pool = Pool(backend, {"python": Size(2, 2)})
    pool.start()
    while pool.levels()["python"] < 2:
        await settle()
    pool._shelves["python"].size = Size(0, 0)  # no more for the shelf
    backend.run_failures.append(SandboxUnavailable("died", step="release"))
    assert (await worker(pool).execute(PLAN, tenant="a")).exit_code == 0
    assert pool.levels()["python"] == 1
    assert backend.prepared == 3
    await pool.close()


async def test_it_is_not_tried_a_third_time(pool: Pool, backend: FakeBackend) -> None:
    backend.run_failures.extend(SandboxUnavailable("died", step="start") for _ in range(2))
    with pytest.raises(SandboxUnavailable):
        await worker(pool).execute(PLAN, tenant="a")
    assert not backend.plans


# ── compiled once ──


@pytest.fixture
def compiler() -> FakeBackend:
    """A backend whose compile step makes something."""
    return FakeBackend(
        script=lambda plan: replace(said("ok"), built=b"ELF" if plan.builds else None)
    )


def compiling(backend: FakeBackend, max_bytes: int) -> Worker:
    pool = Pool(backend, {"go": Size(0, 0), "go-built": Size(0, 0)})
    return Worker(pool, Stepping(), builds=Builds(max_bytes))


async def test_the_same_program_is_compiled_once(compiler: FakeBackend) -> None:
    worker = compiling(compiler, 100)
    outcomes = [await worker.execute(GO_PLAN, tenant="a") for _ in range(3)]
    phases = [[step.phase for step in plan.steps] for plan in compiler.plans]
    assert phases == [["compile", "run"], ["run"], ["run"]]
    assert [outcome.usage.compile_ms for outcome in outcomes] == [None, 0, 0]
    assert {outcome.built for outcome in outcomes} == {None}


async def test_but_for_each_tenant(compiler: FakeBackend) -> None:
    worker = compiling(compiler, 100)
    for tenant in "ab":
        await worker.execute(GO_PLAN, tenant=tenant)
    assert [len(plan.steps) for plan in compiler.plans] == [2, 2]


async def test_without_a_cache_nothing_is_asked_for(compiler: FakeBackend) -> None:
    worker = compiling(compiler, 0)
    for _ in range(2):
        await worker.execute(GO_PLAN, tenant="a")
    assert [(len(plan.steps), plan.builds) for plan in compiler.plans] == [(2, ""), (2, "")]


async def test_a_place_is_free_again_after_a_failure(pool: Pool, backend: FakeBackend) -> None:
    one = worker(pool, concurrency=1, queue=0)
    backend.run_failures.append(SandboxUnavailable("broke", step="frames"))
    with pytest.raises(SandboxUnavailable):
        await one.execute(PLAN, tenant="a")
    await one.execute(PLAN, tenant="a")


async def test_no_more_run_at_once_than_allowed(pool: Pool, backend: FakeBackend) -> None:
    backend.run_s = 0.005
    some = worker(pool, concurrency=3, queue=20)
    await asyncio.gather(*(some.execute(PLAN, tenant="a") for _ in range(12)))
    assert backend.most_running == 3
    assert (some.turns.held, some.turns.waiting) == (0, 0)


async def test_the_sandbox_of_who_waits_for_his_turn_is_prepared_meanwhile(
    backend: FakeBackend,
) -> None:
    pool = Pool(backend, {"python": Size(0, 4)})
    backend.run_s = 0.05
    one = worker(pool, concurrency=1)
    tasks = [asyncio.create_task(one.execute(PLAN, tenant="a")) for _ in range(2)]
    await asyncio.sleep(0.02)
    assert (one.turns.waiting, pool.levels()) == (1, {"python": 1})
    await asyncio.gather(*tasks)
    assert pool.levels() == {"python": 0}
    await asyncio.wait_for(pool.close(), 5)


async def test_a_full_queue_refuses_and_starts_nothing(pool: Pool, backend: FakeBackend) -> None:
    backend.run_s = 0.02
    full = worker(pool, concurrency=1, queue=1)
    first, second = (asyncio.create_task(full.execute(PLAN, tenant="a")) for _ in range(2))
    await settle()
    with pytest.raises(QueueFull) as caught:
        await full.execute(PLAN, tenant="a")
    assert caught.value.retry_after_s > 0
    await asyncio.gather(first, second)
    assert len(backend.plans) == 2


async def test_tenants_take_turns() -> None:
    turns = Turns(1, 100)
    order: list[str] = []

    async def one(tenant: str) -> None:
        async with turns.turn(tenant):
            order.append(tenant)

    async with turns.turn("first"):
        tasks = [asyncio.create_task(one(tenant)) for tenant in ["big"] * 4 + ["small"] * 2]
        await settle()
        assert turns.waiting == 6
    await asyncio.gather(*tasks)
    assert order == ["big", "small", "big", "small", "big", "big"]


async def test_a_newcomer_takes_the_place_of_the_newest_in_a_longer_queue() -> None:
    turns = Turns(1, 3)
    release = asyncio.Event()

    async def hold(tenant: str) -> str:
        async with turns.turn(tenant):
            await release.wait()
        return tenant

    big = [asyncio.create_task(hold("big")) for _ in range(4)]
    await settle()
    small = asyncio.create_task(hold("small"))
    await settle()
    assert isinstance(big[-1].exception(), QueueFull)
    with pytest.raises(QueueFull):
        await hold("big")
    release.set()
    assert await asyncio.gather(*big[:-1], small) == ["big", "big", "big", "small"]
    assert (turns.held, turns.waiting) == (0, 0)


async def test_who_goes_away_while_waiting_leaves_the_queue() -> None:
    turns = Turns(1, 3)
    async with turns.turn("a"):
        waiting = turns.turn("a")
        waiter = asyncio.create_task(waiting.__aenter__())
        await settle()
        assert turns.waiting == 1
        waiter.cancel()
        await settle()
        assert turns.waiting == 0
    assert turns.held == 0


async def test_who_goes_away_with_the_place_in_hand_passes_it_on() -> None:
    turns = Turns(1, 3)
    got: list[str] = []

    async def one(tenant: str) -> None:
        async with turns.turn(tenant):
            got.append(tenant)

    async with turns.turn("first"):
        lost = asyncio.create_task(one("lost"))
        heir = asyncio.create_task(one("heir"))
        await settle()
    lost.cancel()  # the place is his already, but he has not run since
    await asyncio.wait_for(heir, 1)
    assert got == ["heir"]
    assert (turns.held, turns.waiting) == (0, 0)


@given(
    arrivals=st.lists(st.sampled_from("abc"), max_size=30),
    leavers=st.sets(st.integers(0, 29), max_size=10),
)
def test_places_are_never_lost(arrivals: list[str], leavers: set[int]) -> None:
    async def scenario() -> None:
        turns = Turns(2, 8)

        async def one(tenant: str) -> None:
            async with turns.turn(tenant):
                assert turns.held <= 2
                assert turns.waiting <= 8
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(one(tenant)) for tenant in arrivals]
        await asyncio.sleep(0)
        for index in leavers & set(range(len(tasks))):
            tasks[index].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (turns.held, turns.waiting) == (0, 0)

    asyncio.run(scenario())
