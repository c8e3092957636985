"""The life of a run: the table is all there is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from code_executor.lifecycle import TRANSITIONS, IllegalMove, advance, finish, finished
from code_executor.model import (
    DEFAULT_LIMITS,
    LimitHit,
    Outcome,
    Output,
    Phase,
    Run,
    RunStatus,
    Skipped,
    Usage,
)

T0 = datetime(2026, 1, 1, tzinfo=UTC)
T1 = T0 + timedelta(seconds=1)
QUEUED = Run("run_1", "t", "python", RunStatus.QUEUED, "0" * 64, DEFAULT_LIMITS, T0)
RUNNING = advance(QUEUED, RunStatus.RUNNING, now=T0)


def test_the_table_speaks_of_every_status() -> None:
    assert set(TRANSITIONS) == set(RunStatus)


def test_only_queued_and_running_go_on() -> None:
    assert {status for status in RunStatus if not finished(status)} == {
        RunStatus.QUEUED,
        RunStatus.RUNNING,
    }


def test_a_delivery_is_counted_and_stamped() -> None:
    assert (RUNNING.attempts, RUNNING.started_at, RUNNING.finished_at) == (1, T0, None)
    again = advance(advance(RUNNING, RunStatus.QUEUED, now=T1), RunStatus.RUNNING, now=T1)
    assert (again.attempts, again.started_at) == (2, T1)


@given(at=st.sampled_from(RunStatus), to=st.sampled_from(RunStatus))
def test_what_the_table_does_not_have_is_refused(at: RunStatus, to: RunStatus) -> None:
    run = Run("run_1", "t", "python", at, "0" * 64, DEFAULT_LIMITS, T0)
    if to in TRANSITIONS[at]:
        moved = advance(run, to, now=T1)
        assert moved.status is to
        assert (moved.finished_at is not None) == finished(to)
    else:
        with pytest.raises(IllegalMove, match=f"is {at} cannot become {to}"):
            advance(run, to, now=T1)


def test_an_outcome_becomes_the_record() -> None:
    outcome = Outcome(
        RunStatus.TIMEOUT,
        signal="SIGKILL",
        phase=Phase.COMPILE,
        limit_hit=LimitHit.CPU,
        reason="r",
        stdout=Output(b"caf\xc3\xa9 \xff", 6, truncated=True),
        usage=Usage(wall_ms=7),
        skipped=(Skipped("a", "too large", 9),),
    )
    run = finish(RUNNING, outcome, (), T1)
    assert run.status is RunStatus.TIMEOUT
    assert run.stdout == "caf\u00e9 \ufffd"
    assert (run.stdout_truncated, run.stderr_truncated) == (True, False)
    assert (run.signal, run.exit_code, run.phase) == ("SIGKILL", None, Phase.COMPILE)
    assert (run.limit_hit, run.reason, run.usage.wall_ms) == (LimitHit.CPU, "r", 7)
    assert (run.skipped, run.finished_at) == (outcome.skipped, T1)


def test_a_run_does_not_end_as_running() -> None:
    with pytest.raises(IllegalMove, match="does not end as running"):
        finish(RUNNING, Outcome(RunStatus.RUNNING), (), T1)


def test_a_finished_run_does_not_finish_again() -> None:
    done = finish(RUNNING, Outcome(RunStatus.SUCCEEDED), (), T1)
    with pytest.raises(IllegalMove):
        finish(done, Outcome(RunStatus.FAILED), (), T1)
