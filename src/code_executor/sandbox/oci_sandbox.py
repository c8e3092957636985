"""One sandbox that an OCI runtime keeps: prepared, run once, destroyed. See :mod:`.oci`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from code_executor.errors import SandboxUnavailable
from code_executor.model import MIB, Outcome, Plan, RunStatus
from code_executor.sandbox.group import Group
from code_executor.sandbox.lead import Lead
from code_executor.sandbox.native_sandbox import PREPARE_TIMEOUT_S, REMOVE_TIMEOUT_S, readable
from code_executor.sandbox.oci_bundle import RuntimeKind
from code_executor.sandbox.oci_runtime import Runtime
from code_executor.sandbox.running import RunCounters, RunsPlans, until_empty
from code_executor.sandbox.session import Session
from code_executor.sandbox.watch import Verdict


@dataclass(frozen=True, slots=True)
class Own:
    """What a runtime itself takes of a sandbox's limits, beside init and the program."""

    memory_bytes: int
    processes: int


OWN = {
    RuntimeKind.RUNC: Own(0, 1),
    # Its kernel is a process of the host: some 16 MiB, and a thread for each of the program's.
    RuntimeKind.GVISOR: Own(16 * MIB, 192),
}


PROCESSES = Verdict(RunStatus.KILLED, None, "the program started too many processes")


@dataclass(frozen=True, slots=True)
class _Beside:
    """A group's counters without what the runtime itself takes."""

    group: Group
    own_bytes: int

    def cpu_us(self) -> int:
        """See ``watch.Counters``."""
        return self.group.cpu_us()

    def oom_kills(self) -> int:
        """See ``watch.Counters``."""
        return self.group.oom_kills()

    def peak_bytes(self) -> int | None:
        """See ``running.RunCounters``."""
        peak = self.group.peak_bytes()
        return None if peak is None else max(peak - self.own_bytes, 0)


class OciSandbox(RunsPlans):
    """One sandbox: its init, its cgroup, its bundle.

    ``on_gone`` is called once when it has been destroyed, with whether nothing of it is left.
    """

    def __init__(
        self,
        flavour: str,
        runtime: Runtime,
        group: Group,
        name: str,
        on_gone: Callable[[OciSandbox, bool], None],
        lead: Lead,
    ) -> None:
        super().__init__()
        self._lead = lead
        self._flavour = flavour
        self._runtime = runtime
        self._group = group
        self._on_gone = on_gone
        self._own = OWN[runtime.kind]
        self._bundle: Path | None = None
        self._pidfd = -1
        self.name = name

    @property
    def flavour(self) -> str:
        """The flavour it was prepared as."""
        return self._flavour

    def alive(self) -> bool:
        """Whether init, and with it what waits inside, is still there."""
        return self._session is not None and not self._session.closed and self._destroying is None

    async def start(
        self, bundle: Callable[[], Path], *, memory: int, processes: int, warm: bool
    ) -> None:
        """Make it all, until init says READY.

        Raises:
            SandboxUnavailable: a step failed; the caller destroys what there is.
        """
        self._warm = warm
        self._group.make(
            memory_bytes=memory + self._own.memory_bytes, processes=processes + self._own.processes
        )
        self._bundle = bundle()
        joined = self._group.files("cgroup.procs")
        ours, theirs = socket.socketpair()
        try:
            # The session reads while the runtime works: init's first words may be its last.
            self._session = Session(ours)
            procs = joined if self._runtime.kind is RuntimeKind.GVISOR else ()
            async with asyncio.timeout(PREPARE_TIMEOUT_S):
                pid = await self._runtime.run(self.name, self._bundle, theirs, procs)
                theirs.close()
                self._pidfd = os.pidfd_open(pid)
                await self._session.ready()
        except TimeoutError:
            raise SandboxUnavailable("it was not ready in time", step="ready") from None
        except ProcessLookupError:
            raise SandboxUnavailable("it ended at once", step="start") from None
        finally:
            theirs.close()

    # ── what a run needs of it ──

    async def run(self, plan: Plan) -> Outcome:
        """See ``ports.Sandbox.run``; others are prepared afterwards."""
        with self._lead.run():
            return await super().run(plan)

    @property
    def _counters(self) -> RunCounters:
        return _Beside(self._group, self._own.memory_bytes)

    def _limit_group(self, plan: Plan) -> None:
        self._group.limit(
            memory_bytes=plan.limits.memory_mb * MIB + self._own.memory_bytes,
            processes=plan.processes + self._own.processes,
        )

    def _cause_of_death(self) -> Verdict | None:
        """gVisor's kernel ends when it gets no further thread for a process of the program."""
        if self._runtime.kind is RuntimeKind.GVISOR and self._group.refused_processes():
            return PROCESSES
        return None

    def _kill(self) -> None:
        """All processes: of runc's the kernel ends the rest with PID 1, of gVisor's it does not."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self._group.kill()

    # ── ending ──

    async def _destroy(self) -> None:
        self._disarm()
        if self._session is not None:
            self._session.close()
        self._kill()
        if self._pidfd >= 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REMOVE_TIMEOUT_S):
                    await readable(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        await self._lead.over()  # it is dead; its own answer goes first
        forgotten = self._bundle is None or await self._runtime.delete(self.name)
        empty = await until_empty(self._group, REMOVE_TIMEOUT_S)
        clean = await asyncio.to_thread(self._group.remove) and empty
        if self._bundle is not None:
            shutil.rmtree(self._bundle, ignore_errors=True)
        self._on_gone(self, clean and forgotten)
