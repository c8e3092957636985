"""The life of a run as a table; nothing else changes a run's state.

::

    queued ──> running ──> succeeded | failed | timeout | oom | killed | cancelled | error
       ├──> cancelled          │
       └──> error              └──> queued     (its worker died; it is delivered again)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from code_executor.errors import Conflict
from code_executor.model import Outcome, Run, RunStatus, StoredFile

_ENDS = frozenset(RunStatus) - {RunStatus.QUEUED, RunStatus.RUNNING}

TRANSITIONS: Mapping[RunStatus, frozenset[RunStatus]] = {
    RunStatus.QUEUED: frozenset({RunStatus.RUNNING, RunStatus.CANCELLED, RunStatus.ERROR}),
    RunStatus.RUNNING: _ENDS | {RunStatus.QUEUED},
    **{end: frozenset() for end in _ENDS},
}


class IllegalMove(Conflict):
    """A change of state that the table does not have."""


def finished(status: RunStatus) -> bool:
    """Whether nothing more happens to a run of this status."""
    return not TRANSITIONS[status]


def advance(run: Run, to: RunStatus, *, now: datetime, **changes: Any) -> Run:
    """``run`` in state ``to``, with its time stamps, and ``changes`` to further fields.

    Raises:
        IllegalMove: the table has no such change.
    """
    if to not in TRANSITIONS[run.status]:
        raise IllegalMove(f"A run that is {run.status} cannot become {to}.")
    if to is RunStatus.RUNNING:
        changes |= {"started_at": now, "attempts": run.attempts + 1}
    elif finished(to):
        changes["finished_at"] = now
    return replace(run, status=to, **changes)


def finish(run: Run, outcome: Outcome, artifacts: tuple[StoredFile, ...], now: datetime) -> Run:
    """The record of a running ``run`` that ended with ``outcome``.

    Output that is not UTF-8 is shown with replacement characters.

    Raises:
        IllegalMove: it is not running, or the outcome's status is not an end.
    """
    if not finished(outcome.status):
        raise IllegalMove(f"A run does not end as {outcome.status}.")
    return advance(
        run,
        outcome.status,
        now=now,
        exit_code=outcome.exit_code,
        signal=outcome.signal,
        phase=outcome.phase,
        limit_hit=outcome.limit_hit,
        reason=outcome.reason,
        stdout=outcome.stdout.data.decode(errors="replace"),
        stderr=outcome.stderr.data.decode(errors="replace"),
        stdout_truncated=outcome.stdout.truncated,
        stderr_truncated=outcome.stderr.truncated,
        usage=outcome.usage,
        artifacts=artifacts,
        skipped=outcome.skipped,
    )
