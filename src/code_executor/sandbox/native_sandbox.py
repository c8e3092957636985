"""One native sandbox: prepared, run once, destroyed. How it fits in is told in :mod:`.native`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from functools import partial

import structlog

from code_executor.errors import SandboxUnavailable
from code_executor.model import MIB, Plan
from code_executor.ports import Haste
from code_executor.sandbox.group import Group
from code_executor.sandbox.launcher import (
    NO_NETWORK,
    WARM_NONE,
    Launcher,
    SandboxRequest,
    Spawned,
    Spawning,
    Unheld,
)
from code_executor.sandbox.running import RunsPlans, until_empty
from code_executor.sandbox.session import Session
from code_executor.sandbox.turns import Leaving, Readers
from code_executor.sandbox.zygote import Zygote

log = structlog.get_logger(__name__)

PREPARE_TIMEOUT_S = 20.0
REMOVE_TIMEOUT_S = 10.0
PATIENCE_S = 1.0  # a busy host leaves nothing to a preparation that yields: then it does no more
SPARE_PATIENCE_S = 8.0  # what only adds to a stock has more
OWN_PROCESSES = 1  # init counts in the pids controller too


class NativeSandbox(RunsPlans):
    """One sandbox: its init and its cgroup.

    ``on_gone`` is called once when it has been destroyed, with whether nothing of it is left; the
    receiver then owns :attr:`group`, which is either as good as new or removed (``group.made``),
    and may give :attr:`network` back to the launcher.
    """

    def __init__(
        self,
        flavour: str,
        group: Group,
        name: str,
        on_gone: Callable[[NativeSandbox, bool], None],
        *,
        readers: Readers,
        leaving: Leaving,
    ) -> None:
        super().__init__()
        self._flavour = flavour
        self.group = group
        self._on_gone = on_gone
        self._readers = readers
        self._leaving = leaving
        self._spawning: Spawning | None = None
        self._spawned: Spawned | None = None
        self._rest: asyncio.Task[None] | None = None
        self._joined = False
        self._superseded = False
        self.network = NO_NETWORK
        self.name = name

    @property
    def flavour(self) -> str:
        """The flavour it was prepared as."""
        return self._flavour

    def alive(self) -> bool:
        """Whether init, and with it what waits inside, is still there, and worth giving out."""
        return (
            self._session is not None
            and not self._session.closed
            and self._destroying is None
            and not self._superseded
        )

    def supersede(self) -> None:
        """There is a zygote again: what waits without an interpreter is not worth giving out."""
        self._superseded = not self._warm

    # ── preparing ──

    async def start(
        self,
        launcher: Launcher,
        request: SandboxRequest,
        zygote: Zygote | None,
        memory: int,
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
        spawning = await launcher.sandbox(request, self.group.procs(), zygote)
        self._spawning = spawning
        forked = zygote.forked if zygote is not None else 0
        self._session = Session(spawning.control, self._readers)
        deadline = self._session.deadline(PREPARE_TIMEOUT_S)
        patient = SPARE_PATIENCE_S if haste.spare else PATIENCE_S
        patience = asyncio.get_running_loop().call_later(patient, self._hurry)
        try:
            await self._session.ready()
            self._joined = True  # init, and who waits for the program, put themselves in
            if zygote is not None:
                zygote.forked += 1
        except SandboxUnavailable:
            await self._learn(spawning)  # where the launcher has failed, that is the reason
            raise
        except TimeoutError:
            await self._learn(spawning)  # likewise, where it is the one that stands still
            if zygote is not None and zygote.forked == forked:  # nobody has got a child from it
                log.warning("zygote_stands_still", flavour=self._flavour)
                zygote.kill()
            raise SandboxUnavailable("it was not ready in time", step="ready") from None
        finally:
            patience.cancel()
            deadline.cancel()
        await self._learn(spawning)

    def abandon(self) -> None:
        """Have :meth:`start` fail, if it is under way."""
        if self._session is not None and not self._joined:
            self._session.close()

    async def _learn(self, spawning: Spawning) -> None:
        """Take the launcher's answer; raises as :meth:`Spawning.spawned`."""
        try:
            self._spawned = await spawning.spawned()
        except Unheld:
            raise  # it is still to be ended
        except SandboxUnavailable:
            self._spawning = None
            raise
        self._spawning = None

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

    def _begin_to_destroy(self) -> asyncio.Future[None]:
        """The usual end needs no task; whatever is not as usual is left to one.

        Until init has joined the group, that this is empty does not tell that init is gone.
        """
        if self._spawned is None or self._spawning is not None or not self._joined:
            return super()._begin_to_destroy()
        self._disarm()
        self._let_go()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._leaving.add(partial(self._look_after, self._spawned, done))
        return done

    def _look_after(self, spawned: Spawned, done: asyncio.Future[None]) -> None:
        """Some time after the kill: all is gone, or is left to a task."""
        if self._is_empty() and self.group.recycle():
            self._close(spawned)
            self._on_gone(self, True)
            done.set_result(None)
        else:
            self._rest = asyncio.ensure_future(self._destroy())
            self._rest.add_done_callback(partial(_hand_over, done))

    def _let_go(self) -> None:
        self.group.yields(False)  # on a busy host it would end late, and others queue behind it
        self._kill()
        if self._session is not None:
            self._session.close()

    async def _destroy(self) -> None:
        self._disarm()
        known = self._spawning is None or await self._end_preparing(self._spawning)
        self._let_go()
        if self._spawned is not None:
            known = await self._end_processes(self._spawned) and known
        self._on_gone(self, await self._leave_group(known))

    async def _end_preparing(self, spawning: Spawning) -> bool:
        """Learn of a PID 1 that was asked for; whether it is known if there is one."""
        if self._session is not None:
            self._session.close()
        try:
            await self._learn(spawning)
        except Unheld as there:
            self.network = there.network
            return self._joined  # it ends with the channel, and leaves the group when it has
        except SandboxUnavailable:
            pass  # there is none, or it ends with the launcher
        return True

    async def _end_processes(self, spawned: Spawned) -> bool:
        """Wait until PID 1, which was killed, has ended; whether it has."""
        try:
            async with asyncio.timeout(REMOVE_TIMEOUT_S):
                await readable(spawned.pidfd)
        except TimeoutError:
            return False
        finally:
            self._close(spawned)
        return True

    def _close(self, spawned: Spawned) -> None:
        os.close(spawned.pidfd)
        self.network = spawned.network
        self._spawned = None

    def _is_empty(self) -> bool:
        with contextlib.suppress(OSError):
            return self.group.empty()
        return False

    async def _leave_group(self, known: bool) -> bool:
        """Whether nothing is left; ``known``: and no process can come into it any more."""
        known_empty = await until_empty(self.group, REMOVE_TIMEOUT_S) and known
        return (known_empty and self.group.recycle()) or (
            await asyncio.to_thread(self.group.remove) and known
        )


def _hand_over(done: asyncio.Future[None], task: asyncio.Task[None]) -> None:
    """A task's end is that of ``done``."""
    if task.cancelled():  # the loop ends
        done.cancel()
    elif (failure := task.exception()) is not None:
        done.set_exception(failure)
    else:
        done.set_result(None)


async def readable(fd: int) -> None:
    """Until ``fd`` can be read; for a pidfd, until its process has ended."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(fd, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(fd)
