"""The clock that counts: wall time, CPU time and the kernel's OOM counter, kept by the host.

Theory of operation. A watch is armed while a program of the run runs (twice for a compiled one).
One timer serves all. CPU time is looked up when it could first have reached the limit on this
many cores, then again after what is left could have been used, so a short run costs no look-up and
a long one a handful; at the end of the wall time there is nothing to look up. The OOM counter is
looked at on the way, so that a run of which one process was killed for memory ends then. The
first verdict stands; ``stop`` is called with it once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from code_executor.model import LimitHit, Limits, RunStatus

LONGEST_LOOK_S = 0.25
SHORTEST_LOOK_S = 0.01


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why the service ended a run."""

    status: RunStatus
    limit_hit: LimitHit | None = None
    reason: str | None = None


WALL = Verdict(RunStatus.TIMEOUT, LimitHit.WALL)
CPU = Verdict(RunStatus.TIMEOUT, LimitHit.CPU)
OOM = Verdict(RunStatus.OOM, LimitHit.MEMORY)
FLOOD = Verdict(
    RunStatus.KILLED, LimitHit.OUTPUT, "the program wrote far more than max_output_bytes"
)


@cache
def _cores() -> int:
    """How many processors this service, and so every program, may use."""
    return len(os.sched_getaffinity(0))


class Counters(Protocol):
    """What a watch reads; ``cgroup.Group`` is one."""

    def cpu_us(self) -> int:
        """CPU time so far, microseconds."""
        ...

    def oom_kills(self) -> int:
        """Processes ended for memory so far."""
        ...


class Watch:
    """Watches one run against its limits. ``stop`` runs on the event loop."""

    def __init__(self, counters: Counters, limits: Limits, stop: Callable[[Verdict], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._counters = counters
        self._limits = limits
        self._stop = stop
        self._cores = _cores()
        self._cpu_base = counters.cpu_us()
        self._oom_base = counters.oom_kills()
        self._began = 0.0
        self._wall_before = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = 0.0
        # What the counters said when nothing ran any more: they are looked at once.
        self._cpu_us: int | None = 0
        self._judged = False
        self.verdict: Verdict | None = None

    def began(self) -> None:
        """A program of the run has started; said twice, the first time counts."""
        if self._timer is not None:
            return
        self._began = self._loop.time()
        left = self._limits.timeout_ms / 1000 - self._wall_before
        self._deadline = self._began + max(left, 0)
        self._timer = self._loop.call_at(self._next_look(self._began), self._look)
        self._cpu_us = None
        self._judged = False

    def ended(self) -> None:
        """It has ended, or is being ended: the clock stops."""
        if self._timer is not None:
            self._wall_before += self._loop.time() - self._began
            self._timer.cancel()
            self._timer = None

    def decide(self, verdict: Verdict) -> None:
        """The first verdict stands."""
        if self.verdict is None:
            self.verdict = verdict
            self._stop(verdict)

    @property
    def wall_s(self) -> float:
        """Wall time of the run's programs together, seconds."""
        return self._wall_before + (
            self._loop.time() - self._began if self._timer is not None else 0.0
        )

    def cpu_us(self) -> int:
        """CPU time since the watch was made, microseconds."""
        if self._cpu_us is not None:
            return self._cpu_us
        used = self._counters.cpu_us() - self._cpu_base
        if self._timer is None:
            self._cpu_us = used
        return used

    def final(self) -> Verdict | None:
        """The verdict after the end, counters included: a limit passed between two looks counts."""
        if self.verdict is None and not self._judged:
            if self._counters.oom_kills() > self._oom_base:
                self.verdict = OOM
            elif self.cpu_us() > self._limits.cpu_ms * 1000:
                self.verdict = CPU
            self._judged = self._timer is None
        return self.verdict

    def _next_look(self, now: float) -> float:
        left = (self._limits.cpu_ms * 1000 - self.cpu_us()) / 1e6 / self._cores
        return min(now + min(max(left, SHORTEST_LOOK_S), LONGEST_LOOK_S), self._deadline)

    def _look(self) -> None:
        if self._timer is None:
            return
        now = self._loop.time()
        if now >= self._deadline:
            self.decide(WALL)
        elif self._counters.oom_kills() > self._oom_base:
            self.decide(OOM)
        elif self.cpu_us() > self._limits.cpu_ms * 1000:
            self.decide(CPU)
        else:
            self._timer = self._loop.call_at(self._next_look(now), self._look)
