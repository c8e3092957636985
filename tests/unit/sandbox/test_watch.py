"""The clock that counts, on a loop whose time passes only while it waits."""

from __future__ import annotations

import asyncio
import os
import selectors
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

from code_executor.model import LimitHit, Limits, RunStatus
from code_executor.sandbox import watch as watching
from code_executor.sandbox.watch import CPU, FLOOD, OOM, WALL, Verdict, Watch

CORES = len(os.sched_getaffinity(0))
LIMITS = Limits(timeout_ms=5000, cpu_ms=2000)


class _Selector(selectors.DefaultSelector):
    """Passes the time instead of waiting."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += timeout or 0.0
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._passing = _Selector()
        super().__init__(self._passing)

    def time(self) -> float:
        return self._passing.now


def on_virtual_time(body: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=_Loop) as runner:
        runner.run(body)


@dataclass
class Fake:
    """Counters of a program that keeps ``busy`` cores at work from the start."""

    busy: float = 0.0
    base_us: int = 0
    ooms: int = 0
    oom_at: float | None = None
    looks: list[float] = field(default_factory=list)

    def cpu_us(self) -> int:
        now = asyncio.get_running_loop().time()
        self.looks.append(now)
        return self.base_us + round(self.busy * now * 1e6)

    def oom_kills(self) -> int:
        now = asyncio.get_running_loop().time()
        return self.ooms + (self.oom_at is not None and now >= self.oom_at)


class Stops:
    """What a watch decided, and when."""

    def __init__(self) -> None:
        self.told: list[tuple[float, Verdict]] = []

    def __call__(self, verdict: Verdict) -> None:
        self.told.append((asyncio.get_running_loop().time(), verdict))


def ran(fake: Fake, seconds: float, limits: Limits = LIMITS) -> tuple[Watch, Stops]:
    """A watch over a program that would run for so many seconds, or until it is stopped."""
    stops = Stops()
    kept: list[Watch] = []

    async def body() -> None:
        watch = Watch(fake, limits, stops)
        kept.append(watch)
        watch.began()
        await asyncio.sleep(seconds)
        watch.ended()

    on_virtual_time(body())
    return kept[0], stops


def test_a_run_within_its_limits_has_no_verdict() -> None:
    watch, stops = ran(Fake(busy=0.1), 4.9)
    assert stops.told == []
    assert watch.verdict is None


def test_wall_time_is_one_timer_and_exact() -> None:
    _, stops = ran(Fake(), 60.0)
    assert stops.told == [(5.0, WALL)]


@pytest.mark.parametrize("busy", [0.5, 1.0, float(CORES)])
def test_cpu_time_is_found_soon_after_its_limit(busy: float) -> None:
    _, stops = ran(Fake(busy=busy), 60.0)
    ((at, verdict),) = stops.told
    assert verdict is CPU
    assert 2.0 / busy < at <= 2.0 / busy + watching.LONGEST_LOOK_S


def test_cpu_time_before_the_run_does_not_count() -> None:
    _, stops = ran(Fake(busy=0.1, base_us=10_000_000, ooms=3), 3.0)
    assert stops.told == []


def test_a_short_run_costs_no_look_and_a_long_one_a_handful() -> None:
    fake = Fake(busy=1.0)
    ran(fake, 0.2)
    assert len(fake.looks) <= 2  # the base, and when the first look is due
    fake = Fake(busy=0.01)
    ran(fake, 4.9)
    assert len(fake.looks) < 60


def test_one_process_killed_for_memory_ends_the_run() -> None:
    _, stops = ran(Fake(oom_at=1.0), 60.0)
    ((at, verdict),) = stops.told
    assert verdict is OOM
    assert 1.0 <= at <= 1.0 + watching.LONGEST_LOOK_S


def test_the_first_verdict_stands_and_is_told_once() -> None:
    _, stops = ran(Fake(busy=1.0, oom_at=3.0), 60.0)
    assert [verdict for _, verdict in stops.told] == [CPU]


def finals(fake: Fake, seconds: float, limits: Limits = LIMITS) -> Verdict | None:
    """The verdict after a program that ended by itself between two looks."""
    found: list[Verdict | None] = []

    async def body() -> None:
        watch = Watch(fake, limits, lambda verdict: None)
        watch.began()
        await asyncio.sleep(seconds)
        watch.ended()
        found.append(watch.final())

    on_virtual_time(body())
    return found[0]


@pytest.mark.parametrize(
    ("fake", "verdict"),
    [
        (Fake(busy=0.5), None),
        (Fake(busy=101.0), CPU),
        (Fake(oom_at=0.005), OOM),
        (Fake(busy=101.0, oom_at=0.005), OOM),
    ],
)
def test_a_limit_passed_between_two_looks_counts(fake: Fake, verdict: Verdict | None) -> None:
    assert finals(fake, 0.009, Limits(cpu_ms=900)) is verdict


def test_a_limit_exactly_reached_is_not_passed() -> None:
    assert finals(Fake(busy=1.0), 1.0, Limits(cpu_ms=1000)) is None


def test_the_clock_stops_between_the_programs_of_one_run() -> None:
    stops = Stops()

    async def body() -> None:
        watch = Watch(Fake(), LIMITS, stops)
        watch.began()
        await asyncio.sleep(2)
        watch.ended()
        await asyncio.sleep(100)
        assert watch.wall_s == 2
        watch.began()
        await asyncio.sleep(1)
        assert watch.wall_s == 3
        await asyncio.sleep(100)

    on_virtual_time(body())
    assert stops.told == [(105.0, WALL)]


def test_a_second_program_gets_what_the_first_left() -> None:
    stops = Stops()

    async def body() -> None:
        watch = Watch(Fake(), LIMITS, stops)
        watch.began()
        await asyncio.sleep(4.75)
        watch.ended()
        watch.began()
        await asyncio.sleep(60)

    on_virtual_time(body())
    assert stops.told == [(5.0, WALL)]


def test_nothing_is_decided_after_the_end() -> None:
    stops = Stops()

    async def body() -> None:
        watch = Watch(Fake(busy=0.1), LIMITS, stops)
        watch.began()
        await asyncio.sleep(1)
        watch.ended()
        watch.ended()
        await asyncio.sleep(100)

    on_virtual_time(body())
    assert stops.told == []


def test_a_flood_is_a_verdict_like_the_others() -> None:
    stops = Stops()

    async def body() -> None:
        watch = Watch(Fake(), LIMITS, stops)
        watch.began()
        watch.decide(FLOOD)
        watch.decide(WALL)
        assert watch.final() is FLOOD

    on_virtual_time(body())
    assert stops.told == [(0.0, FLOOD)]


@pytest.mark.parametrize(
    ("verdict", "status", "hit"),
    [
        (WALL, RunStatus.TIMEOUT, LimitHit.WALL),
        (CPU, RunStatus.TIMEOUT, LimitHit.CPU),
        (OOM, RunStatus.OOM, LimitHit.MEMORY),
        (FLOOD, RunStatus.KILLED, LimitHit.OUTPUT),
    ],
)
def test_each_verdict_names_its_limit(verdict: Verdict, status: RunStatus, hit: LimitHit) -> None:
    assert (verdict.status, verdict.limit_hit) == (status, hit)
    assert (verdict.reason is not None) is (status is RunStatus.KILLED)
