"""One native sandbox: prepared, run once, destroyed. How it fits in is told in :mod:`.native`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
from collections.abc import Callable

from code_executor.model import MIB, Plan
from code_executor.ports import Haste
from code_executor.sandbox.group import Group
from code_executor.sandbox.launcher import (
    WARM_NONE,
    Launcher,
    SandboxRequest,
    Spawned,
    Zygote,
)
from code_executor.sandbox.running import RunsPlans, until_empty
from code_executor.sandbox.session import Session

PREPARE_TIMEOUT_S = 20.0
REMOVE_TIMEOUT_S = 10.0
PATIENCE_S = 1.0  # a busy host leaves nothing to a preparation that yields: then it does no more
USUAL_END_S = 0.002  # what the kernel takes to end a sandbox; to look later costs less than to wait
OWN_PROCESSES = 1  # init counts in the pids controller too


class NativeSandbox(RunsPlans):
    """One sandbox: its init and its cgroup.

    ``on_gone`` is called once when it has been destroyed, with whether nothing of it is left; the
    receiver then owns :attr:`network`, a descriptor of the network namespace it had, and
    :attr:`group`, which is either as good as new or removed (``group.made``).
    """

    def __init__(
        self, flavour: str, group: Group, name: str, on_gone: Callable[[NativeSandbox, bool], None]
    ) -> None:
        super().__init__()
        self._flavour = flavour
        self.group = group
        self._on_gone = on_gone
        self._spawned: Spawned | None = None
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
        haste: Haste,
    ) -> None:
        """Make it all, until init says READY.

        Raises:
            SandboxUnavailable: a step failed; the caller destroys what there is.
        """
        self._warm = request.warm != WARM_NONE
        self.group.make(memory_bytes=memory, processes=request.processes + OWN_PROCESSES)
        self.group.yields(not haste.needed)
        haste.on_need(self._hurry)
        self._spawned = await launcher.sandbox(request, self.group.procs(), zygote, network)
        self._session = Session(self._spawned.control)
        patience = asyncio.get_running_loop().call_later(PATIENCE_S, self._hurry)
        try:
            async with asyncio.timeout(PREPARE_TIMEOUT_S):
                await self._session.ready()
        finally:
            patience.cancel()

    def _hurry(self) -> None:
        """It has its ordinary share of the CPU from now on; its group, once gone, is another's."""
        if self._destroying is None:
            self.group.yields(False)

    # ── what a run needs of it ──

    @property
    def _counters(self) -> Group:
        return self.group

    def _limit_group(self, plan: Plan) -> None:
        """v1 refuses a limit below what is used; v2 ends the interpreter, which the watch sees."""
        memory = plan.limits.memory_mb * MIB
        self._hurry()
        self.group.limit(memory_bytes=memory, processes=plan.processes + OWN_PROCESSES)

    def _kill(self) -> None:
        """SIGKILL to PID 1: the kernel ends the whole pid namespace."""
        if self._spawned is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._spawned.pidfd, signal.SIGKILL)

    # ── ending ──

    async def _destroy(self) -> None:
        self._disarm()
        self.group.yields(False)  # on a busy host it would end late, and others queue behind it
        if self._session is not None:
            self._session.close()
        if self._spawned is not None:
            await self._end_processes(self._spawned)
        self._on_gone(self, await self._leave_group())

    async def _end_processes(self, spawned: Spawned) -> None:
        self._kill()
        if self._session is None:
            spawned.control.close()
        await asyncio.sleep(USUAL_END_S)
        if not _ended(spawned.pidfd):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REMOVE_TIMEOUT_S):
                    await readable(spawned.pidfd)
        os.close(spawned.pidfd)
        self.network = spawned.network
        self._spawned = None

    async def _leave_group(self) -> bool:
        if not await until_empty(self.group, REMOVE_TIMEOUT_S):
            return False
        return self.group.recycle() or await asyncio.to_thread(self.group.remove)


def _ended(pidfd: int) -> bool:
    watched = select.poll()
    watched.register(pidfd, select.POLLIN)
    return bool(watched.poll(0))


async def readable(fd: int) -> None:
    """Until ``fd`` can be read; for a pidfd, until its process has ended."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(fd, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(fd)
