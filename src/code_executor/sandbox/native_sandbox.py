"""One native sandbox: prepared, run once, destroyed. How it fits in is told in :mod:`.native`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence

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
from code_executor.sandbox.cgroup import Group
from code_executor.sandbox.frames import HEADER, Ended, Kind
from code_executor.sandbox.launcher import (
    WARM_NONE,
    Launcher,
    SandboxRequest,
    Spawned,
    Zygote,
    environment,
)
from code_executor.sandbox.session import Session, failed_step
from code_executor.sandbox.watch import FLOOD, OOM, Verdict, Watch

log = structlog.get_logger(__name__)

PREPARE_TIMEOUT_S = 20.0
KILL_GRACE_S = 0.5
SLACK_S = 20.0  # staging and listing, which the watch's clock does not count
COLLECT_TIMEOUT_S = 10.0
REMOVE_TIMEOUT_S = 10.0
BUILT_MAX = 16 * MIB  # a larger binary is compiled each time
OWN_PROCESSES = 1  # init counts in the pids controller too


class NativeSandbox:
    """One sandbox: its init and its cgroup.

    ``on_gone`` is called once when it has been destroyed, with whether nothing of it is left; the
    receiver then owns :attr:`network`, a descriptor of the network namespace it had.
    """

    def __init__(
        self, flavour: str, group: Group, name: str, on_gone: Callable[[NativeSandbox, bool], None]
    ) -> None:
        self._flavour = flavour
        self._group = group
        self._on_gone = on_gone
        self._destroying: asyncio.Task[None] | None = None
        self._spawned: Spawned | None = None
        self._session: Session | None = None
        self._hard_kill: asyncio.TimerHandle | None = None
        self._warm = False
        self.network: int | None = None
        self.name = name

    @property
    def flavour(self) -> str:
        """The flavour it was prepared as."""
        return self._flavour

    def alive(self) -> bool:
        """Whether init, and with it what waits inside, is still there."""
        return self._session is not None and not self._session.closed and self._destroying is None

    # ── preparing ──

    async def start(
        self,
        launcher: Launcher,
        request: SandboxRequest,
        zygote: Zygote | None,
        memory: int,
        network: int | None,
    ) -> None:
        """Make it all, until init says READY.

        Raises:
            SandboxUnavailable: a step failed; the caller destroys what there is.
        """
        self._warm = request.warm != WARM_NONE
        self._group.make(memory_bytes=memory, processes=request.processes + OWN_PROCESSES)
        procs = self._group.procs()
        try:
            spawned = await launcher.sandbox(request, procs, network)
            self._spawned = spawned
            if zygote is not None:
                await _hand_over(spawned, zygote, request.processes, procs)
        finally:
            for fd in procs:
                os.close(fd)
        self._session = Session(spawned.control)
        async with asyncio.timeout(PREPARE_TIMEOUT_S):
            await self._session.ready()

    # ── running ──

    async def run(self, plan: Plan) -> Outcome:
        """Execute the plan; see ``ports.Sandbox.run``."""
        session = self._session
        if session is None or session.closed:
            raise SandboxUnavailable("the sandbox died before its run", step="start")
        watch = Watch(self._group, plan.limits, self._stop)
        session.on_began = watch.began
        session.on_ended = watch.ended
        session.on_flood = lambda: watch.decide(FLOOD)
        progress = _Progress()
        try:
            self._limit(plan, watch)
            async with asyncio.timeout(plan.limits.timeout_ms / 1000 + SLACK_S):
                await self._programs(session, plan, watch, progress)
        except TimeoutError:
            raise SandboxUnavailable("init does not answer", step="deadline") from None
        except SandboxUnavailable:
            watch.ended()
            if watch.final() is None:
                raise
        finally:
            watch.ended()
            self._disarm()
        artifacts, skipped = await self._collect(session, plan.limits)
        return self._outcome(session, watch, progress, artifacts, skipped)

    def _limit(self, plan: Plan, watch: Watch) -> None:
        """The run's own limits; an interpreter that waits may be larger than the run may be.

        v1 refuses such a limit; v2 ends the interpreter, which the watch sees.
        """
        memory = plan.limits.memory_mb * MIB
        try:
            self._group.limit(memory_bytes=memory, processes=plan.processes + OWN_PROCESSES)
        except SandboxUnavailable:
            watch.decide(OOM)
            raise

    async def _programs(
        self, session: Session, plan: Plan, watch: Watch, progress: _Progress
    ) -> None:
        before = session.stage(plan)
        env = environment(dict(plan.env))
        for step in plan.steps:
            last = step is plan.steps[-1]
            warm = plan.warm and last and self._warm
            argv = plan.args if warm else (*step.argv, *(plan.args if last else ()))
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

    def _kill(self) -> None:
        """SIGKILL to PID 1: the kernel ends the whole pid namespace."""
        if self._spawned is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._spawned.pidfd, signal.SIGKILL)

    async def _collect(
        self, session: Session, limits: Limits
    ) -> tuple[list[ArtifactFile], list[Skipped]]:
        """The files the program left; a sandbox that is gone by now left none."""
        choice = choose(session.entries, limits, truncated=session.entries_truncated)
        files: list[ArtifactFile] = []
        skipped = list(choice.skipped)
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
        peak = self._group.peak_bytes()
        if peak is None:
            peak = progress.ended.maxrss_kb * 1024 if progress.ended else 0
        return -(-peak // MIB)

    # ── ending ──

    async def destroy(self) -> None:
        """Leave nothing; see ``ports.Sandbox.destroy``."""
        if self._destroying is None:
            self._destroying = asyncio.ensure_future(self._destroy())
        await asyncio.shield(self._destroying)  # a caller that goes away leaves nothing behind

    async def _destroy(self) -> None:
        self._disarm()
        if self._session is not None:
            self._session.close()
        if self._spawned is not None:
            await self._end_processes(self._spawned)
        self._on_gone(self, await self._remove_group())

    async def _end_processes(self, spawned: Spawned) -> None:
        self._kill()
        if self._session is None:
            spawned.control.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REMOVE_TIMEOUT_S):
                await _readable(spawned.pidfd)
        os.close(spawned.pidfd)
        self.network = spawned.network
        self._spawned = None

    async def _remove_group(self) -> bool:
        """The cgroup empties a moment after the last process is reaped."""
        deadline = time.monotonic() + REMOVE_TIMEOUT_S
        pause = 0.001
        while not self._group.remove():
            if time.monotonic() > deadline:
                return False
            self._group.kill()
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.1)
        return True


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


async def _readable(fd: int) -> None:
    """Until ``fd`` can be read; for a pidfd, until its process has ended."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(fd, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(fd)


async def _hand_over(
    spawned: Spawned, zygote: Zygote, processes: int, procs: Sequence[int]
) -> None:
    """Take the program's pipe ends from init's HELLO and give them to a zygote's child."""
    async with asyncio.timeout(PREPARE_TIMEOUT_S):
        await _readable(spawned.control.fileno())
    data, fds, _, _ = socket.recv_fds(spawned.control, HEADER.size, 8)
    try:
        if data[:1] == bytes((Kind.FAILED,)):
            raise failed_step(spawned.control.recv(256))
        if len(data) != HEADER.size or data[0] != Kind.HELLO or len(fds) != 5:
            raise SandboxUnavailable("init did not come up", step="hello")
        zygote.fork(processes, [spawned.pidfd, *fds, *procs])
    finally:
        for fd in fds:
            os.close(fd)
