"""Real time: in UTC, and never backwards."""

from __future__ import annotations

from datetime import UTC, datetime

from code_executor.clock import SystemClock


def test_wall_time_is_utc() -> None:
    now = SystemClock().now()
    assert now.tzinfo is UTC
    assert abs((datetime.now(UTC) - now).total_seconds()) < 5


def test_monotonic_time_goes_on() -> None:
    clock = SystemClock()
    assert clock.monotonic() <= clock.monotonic()
