"""Running a plan over a session: the same for every backend whose sandboxes have our init.

Theory of operation. :class:`RunsPlans` sends a plan's files and programs to init, arms the watch
while a program runs, ends what the watch has decided to end, fetches the artifacts and says how it
went. What differs between the backends is behind four names: ``_counters`` (what the kernel counts
of this sandbox), ``_limit_group`` (the run's own limits, known only now), ``_kill`` (for an init
that does not answer) and ``name``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence
from typing import Protocol

import structlog

from code_executor.errors import SandboxUnavailable
from code_executor.model import (
    MIB,
    ArtifactFile,
    Limits,
    Outcome,
    Phase,
    Plan,
    RunStatus,
    Skipped,
    Usage,
)
from code_executor.sandbox.artifacts import choose
from code_executor.sandbox.frames import Ended
from code_executor.sandbox.group import Group
from code_executor.sandbox.launcher import environment
from code_executor.sandbox.session import Session
from code_executor.sandbox.watch import FLOOD, OOM, Counters, Verdict, Watch

log = structlog.get_logger(__name__)

KILL_GRACE_S = 0.5
SLACK_S = 20.0  # staging and listing, which the watch's clock does not count
COLLECT_TIMEOUT_S = 10.0
BUILT_MAX = 16 * MIB  # a larger binary is compiled each time


class RunCounters(Counters, Protocol):
    """What is read of a sandbox's processes; ``cgroup.Group`` is one."""

    def peak_bytes(self) -> int | None:
        """The highest memory use so far; ``None`` where nobody counts it."""
        ...


class RunsPlans(ABC):
    """A sandbox with a session to its init."""

    name: str

    def __init__(self) -> None:
        self._session: Session | None = None
        self._warm = False  # an interpreter waits inside
        self._over = False  # it is larger than the run may be, which may have ended it
        self._hard_kill: asyncio.TimerHandle | None = None
        self._destroying: asyncio.Future[None] | None = None

    def memory_bytes(self) -> int:
        """See ``ports.Sandbox.memory_bytes``."""
        return self._counters.peak_bytes() or 0

    @property
    @abstractmethod
    def _counters(self) -> RunCounters: ...

    @abstractmethod
    def _limit_group(self, plan: Plan) -> None:
        """Set the run's limits.

        Raises:
            SandboxUnavailable: what waits inside is larger than they are.
        """

    def _cause_of_death(self) -> Verdict | None:
        """Why a sandbox has ended with its init, where the program may be the reason."""
        return None

    def destroy(self) -> Awaitable[None]:
        """Leave nothing; see ``ports.Sandbox.destroy``."""
        if self._destroying is None:
            self._destroying = self._begin_to_destroy()
        return asyncio.shield(self._destroying)  # a caller that goes away leaves nothing behind

    def _begin_to_destroy(self) -> asyncio.Future[None]:
        """Done when nothing is left."""
        return asyncio.ensure_future(self._destroy())

    @abstractmethod
    async def _destroy(self) -> None:
        """End and remove everything; called once, never cancelled."""

    @abstractmethod
    def _kill(self) -> None:
        """End everything in the sandbox, PID 1 included."""

    async def run(self, plan: Plan) -> Outcome:
        """Execute the plan; see ``ports.Sandbox.run``."""
        session = self._session
        if session is None or (session.closed and not self._over):
            raise SandboxUnavailable("the sandbox died before its run", step="start")
        watch = Watch(self._counters, plan.limits, self._stop)
        session.on_began = watch.began
        session.on_ended = watch.ended
        session.on_flood = lambda: watch.decide(FLOOD)
        progress = _Progress()
        deadline = session.deadline(plan.limits.timeout_ms / 1000 + SLACK_S)
        try:
            self._limit(plan, watch)
            await self._programs(session, plan, watch, progress)
        except TimeoutError:
            raise SandboxUnavailable("init does not answer", step="deadline") from None
        except SandboxUnavailable:
            watch.ended()
            if watch.final() is None and (cause := self._cause_of_death()) is not None:
                watch.verdict = cause
            if watch.final() is None:
                raise
        finally:
            deadline.cancel()
            watch.ended()
            self._disarm()
        artifacts, skipped = await self._collect(session, plan.limits)
        return self._outcome(session, watch, progress, artifacts, skipped)

    def _limit(self, plan: Plan, watch: Watch) -> None:
        """The run's own limits; an interpreter that waits may be larger than the run may be."""
        try:
            self._limit_group(plan)
        except SandboxUnavailable:
            watch.decide(OOM)
            raise
        except OSError as error:
            raise SandboxUnavailable("the limits could not be set", step="start") from error

    async def _programs(
        self, session: Session, plan: Plan, watch: Watch, progress: _Progress
    ) -> None:
        before = session.stage(plan)
        env = environment(dict(plan.env))
        for step in plan.steps:
            args = plan.args if step is plan.steps[-1] else ()
            warm = plan.warm and step is plan.steps[0] and self._warm
            argv = args if warm else (*step.argv, *args)
            progress.phase = step.phase
            progress.ended = None
            if warm:
                watch.began()  # it starts as soon as init has read this: no need to be told
            progress.ended = await session.execute(argv, env, warm=warm, before=before)
            progress.wall_us += progress.ended.wall_us
            before = b""
            if step.phase is Phase.COMPILE:
                progress.compile_ms = round(watch.wall_s * 1000)
            if progress.ended.wait_status != 0 or watch.final() is not None:
                return
            if step.phase is Phase.COMPILE and plan.builds:
                # Nothing runs: init killed all there was, and the program comes after this.
                progress.built = await session.built(plan.builds, BUILT_MAX)

    def _stop(self, verdict: Verdict) -> None:
        """The watch has decided: end the program, tidily if init still answers."""
        del verdict
        assert self._session is not None
        self._session.kill()
        loop = asyncio.get_running_loop()
        self._hard_kill = loop.call_later(KILL_GRACE_S, self._kill_hard)

    def _disarm(self) -> None:
        if self._hard_kill is not None:
            self._hard_kill.cancel()
            self._hard_kill = None

    def _kill_hard(self) -> None:
        log.warning("init_did_not_answer", sandbox=self.name)
        self._kill()

    async def _collect(
        self, session: Session, limits: Limits
    ) -> tuple[list[ArtifactFile], list[Skipped]]:
        """The files the program left; a sandbox that is gone by now left none."""
        choice = choose(session.entries, limits, truncated=session.entries_truncated)
        files: list[ArtifactFile] = []
        skipped = list(choice.skipped)
        if not choice.fetch:
            return files, skipped
        try:
            async with asyncio.timeout(COLLECT_TIMEOUT_S):
                for path, name, size in choice.fetch:
                    content = await session.get(path, limits.max_artifact_bytes)
                    if content is None:
                        skipped.append(Skipped(name, "it could not be read", size))
                    else:
                        files.append(ArtifactFile(name, content))
        except (SandboxUnavailable, TimeoutError):
            lost = choice.fetch[len(files) :]
            skipped += [Skipped(name, "the sandbox ended before", size) for _, name, size in lost]
        return files, skipped

    def _outcome(
        self,
        session: Session,
        watch: Watch,
        progress: _Progress,
        artifacts: Sequence[ArtifactFile],
        skipped: Sequence[Skipped],
    ) -> Outcome:
        verdict = watch.final()
        exit_code, signal_name = _exit_facts(progress.ended, verdict)
        status = RunStatus.SUCCEEDED if exit_code == 0 else RunStatus.FAILED
        stdout, stderr = session.stdout.output(), session.stderr.output()
        return Outcome(
            status=verdict.status if verdict else status,
            exit_code=exit_code,
            signal=signal_name,
            phase=progress.phase,
            limit_hit=verdict.limit_hit if verdict else None,
            reason=verdict.reason if verdict else None,
            stdout=stdout,
            stderr=stderr,
            usage=Usage(
                # A busy host may hear of a start late; init measures, the host's clock decides.
                wall_ms=round(max(watch.wall_s * 1000, progress.wall_us / 1000)),
                cpu_ms=round(watch.cpu_us() / 1000),
                max_rss_mb=self._peak_mb(progress),
                compile_ms=progress.compile_ms,
                output_bytes=stdout.total_bytes + stderr.total_bytes,
            ),
            artifacts=tuple(artifacts),
            skipped=tuple(skipped),
            built=progress.built,
        )

    def _peak_mb(self, progress: _Progress) -> int:
        peak = self._counters.peak_bytes()
        if peak is None:
            peak = progress.ended.maxrss_kb * 1024 if progress.ended else 0
        return -(-peak // MIB)


async def until_empty(group: Group, seconds: float) -> bool:
    """End what is in a control group until nothing is; whether that was so within ``seconds``.

    It empties a moment after the last process is reaped.
    """
    deadline = time.monotonic() + seconds
    pause = 0.001
    while not _looks_empty(group):
        if time.monotonic() > deadline:
            return False
        with contextlib.suppress(OSError):
            group.kill()
        await asyncio.sleep(pause)
        pause = min(pause * 2, 0.1)
    return True


def _looks_empty(group: Group) -> bool:
    """One that a runtime has removed is; one that cannot be read otherwise is not."""
    try:
        return group.empty()
    except OSError as error:
        return error.errno in (errno.ENOENT, errno.ENODEV)


class _Progress:
    """How far a plan has come; what is known when it stops there."""

    def __init__(self) -> None:
        self.phase = Phase.RUN
        self.ended: Ended | None = None
        self.compile_ms: int | None = None
        self.built: bytes | None = None
        self.wall_us = 0  # by init's clock


def _exit_facts(ended: Ended | None, verdict: Verdict | None) -> tuple[int | None, str | None]:
    """Exit code and signal name from the wait status; neither when the service ended it."""
    if ended is None or verdict is not None:
        return None, None
    if os.WIFSIGNALED(ended.wait_status):
        number = os.WTERMSIG(ended.wait_status)
        with contextlib.suppress(ValueError):
            return None, signal.Signals(number).name
        return None, f"SIG{number}"
    return os.WEXITSTATUS(ended.wait_status), None
