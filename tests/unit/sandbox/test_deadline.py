"""Time limits that do not count what this process stood still."""

from __future__ import annotations

import asyncio
import time

from code_executor.sandbox.deadline import Deadline


async def test_it_is_late_once_after_its_time() -> None:
    calls: list[float] = []
    began = time.monotonic()
    Deadline(0.1, lambda: calls.append(time.monotonic() - began))
    await asyncio.sleep(0.5)
    assert len(calls) == 1
    assert calls[0] >= 0.09


async def test_it_does_not_count_a_pause() -> None:
    """Not even in its last slice."""
    late = asyncio.Event()
    Deadline(1.0, late.set)
    await asyncio.sleep(0.95)
    time.sleep(0.5)
    await asyncio.sleep(0.02)
    assert not late.is_set()
    await asyncio.wait_for(late.wait(), 5)


async def test_cancelled_it_is_never_late() -> None:
    late = asyncio.Event()
    deadline = Deadline(0.1, late.set)
    await asyncio.sleep(0.05)  # in one of its later slices
    deadline.cancel()
    deadline.cancel()
    await asyncio.sleep(0.2)
    assert not late.is_set()
