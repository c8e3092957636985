"""Who waits for whom, and that nobody waits for ever."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from code_executor.sandbox.lead import Lead

ENOUGH_S = 10.0


async def test_nobody_waits_when_nothing_runs() -> None:
    waiting = Lead().over()
    with pytest.raises(StopIteration):
        waiting.send(None)


async def test_a_run_that_has_just_begun_goes_first() -> None:
    lead = Lead()
    with lead.run():
        waiting = asyncio.create_task(lead.over())
        await asyncio.sleep(0)
        assert not waiting.done()
    assert not waiting.done()  # its answer is not on the way yet
    await asyncio.wait_for(waiting, ENOUGH_S)


async def test_a_long_run_is_not_waited_for() -> None:
    lead = Lead()
    with lead.run():
        await asyncio.wait_for(lead.over(), ENOUGH_S)
        waiting = lead.over()
        with pytest.raises(StopIteration):
            waiting.send(None)


async def test_runs_without_end_hold_nobody_up() -> None:
    lead = Lead()

    async def one_after_another() -> None:
        while True:
            with lead.run():
                await asyncio.sleep(0.001)

    runs = asyncio.create_task(one_after_another())
    await asyncio.sleep(0)
    await asyncio.wait_for(lead.over(), ENOUGH_S)
    assert not runs.done()
    runs.cancel()
    with suppress(asyncio.CancelledError):
        await runs


async def test_what_has_ended_is_forgotten() -> None:
    lead = Lead()
    for _ in range(3):
        with lead.run():
            pass
        await lead.over()
    assert len(lead._until) == 1
