"""One container of an engine: prepared, run once, removed. :mod:`.docker` tells how it fits in.

Theory of operation. The control channel is the container's standard input and output, through a
connection that the engine has "hijacked": without a terminal it puts a header of eight bytes before
each piece of output, which aiodocker takes off. A :class:`Pipe` carries bytes between that stream
and one end of a socket pair; the session has the other end, and knows nothing of engines.

What a run used and whether memory ran out is read from the container's cgroup on this host, as for
the native backend; the engine is only asked where that is.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import structlog
from aiodocker.containers import DockerContainer
from aiodocker.docker import Docker
from aiodocker.exceptions import DockerError
from aiodocker.stream import Stream

from code_executor.errors import HostUnfit, SandboxUnavailable, words
from code_executor.model import MIB, Outcome, Plan
from code_executor.sandbox.group import SOCKETS_V1_BYTES, Group, Mounts
from code_executor.sandbox.lead import Lead
from code_executor.sandbox.running import RunCounters, RunsPlans
from code_executor.sandbox.session import Session

log = structlog.get_logger(__name__)

PREPARE_TIMEOUT_S = 60.0
REMOVE_TIMEOUT_S = 30.0
ASK_TIMEOUT_S = 5.0
READ_SIZE = 256 * 1024
ENGINE_ERRORS = (DockerError, aiohttp.ClientError, OSError, TimeoutError)
TOO_SMALL = "unable to set memory limit"  # how runc words a limit below what is used


class Pipe:
    """Bytes between an attached stream and a socket, both ways, until either ends.

    ``on_end`` is awaited when the container's end has come, before the socket tells of it.
    """

    def __init__(
        self, stream: Stream, sock: socket.socket, on_end: Callable[[], Awaitable[None]]
    ) -> None:
        self._stream = stream
        self._socket = sock
        self._on_end = on_end
        sock.setblocking(False)
        self._tasks = [asyncio.create_task(self._to_host()), asyncio.create_task(self._to_init())]

    async def _to_host(self) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(*ENGINE_ERRORS):
            while (message := await self._stream.read_out()) is not None:
                await loop.sock_sendall(self._socket, message.data)
        await self._on_end()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    async def _to_init(self) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(*ENGINE_ERRORS, RuntimeError):
            while data := await loop.sock_recv(self._socket, READ_SIZE):
                await self._stream.write_in(data)

    async def close(self) -> None:
        """Let both ends go."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._socket.close()
        with contextlib.suppress(*ENGINE_ERRORS, AssertionError):
            await self._stream.close()


class Counted:
    """A container's counters, which outlive it: an engine removes the cgroup when PID 1 ends."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._cpu = self._kills = self._peak = 0
        self.told_kills = 0

    def cpu_us(self) -> int:
        """See ``watch.Counters``."""
        with contextlib.suppress(OSError):
            self._cpu = self._group.cpu_us()
        return self._cpu

    def oom_kills(self) -> int:
        """See ``watch.Counters``; what the engine has told counts too."""
        with contextlib.suppress(OSError):
            self._kills = self._group.oom_kills()
        return self._kills + self.told_kills

    def peak_bytes(self) -> int | None:
        """See ``running.RunCounters``."""
        with contextlib.suppress(OSError):
            self._peak = self._group.peak_bytes() or 0
        return self._peak or None

    def keep(self) -> None:
        """Look at everything once more while it is there."""
        self.cpu_us(), self.oom_kills(), self.peak_bytes()


class DockerSandbox(RunsPlans):
    """One container. ``on_gone`` is called once, when it has been removed."""

    def __init__(
        self,
        engine: Docker,
        flavour: str,
        warm: bool,
        on_gone: Callable[[DockerSandbox], None],
        lead: Lead,
    ) -> None:
        super().__init__()
        self._lead = lead
        self._engine = engine
        self._flavour = flavour
        self._warm = warm
        self._on_gone = on_gone
        self._container: DockerContainer | None = None
        self._pipe: Pipe | None = None
        self._group: Group | None = None
        self._counted: Counted | None = None
        self._limits = (0, 0)
        self._killing: asyncio.Task[None] | None = None
        self.sockets_limited = False
        self.name = "container"

    @property
    def flavour(self) -> str:
        """The flavour it was prepared as."""
        return self._flavour

    def alive(self) -> bool:
        """Whether init still holds its channel."""
        return self._session is not None and not self._session.closed

    async def start(self, spec: dict[str, Any], mounts: Mounts) -> None:
        """Create, attach, start, and wait for init.

        Raises:
            SandboxUnavailable: the engine refused, or a step of init failed.
        """
        try:
            async with asyncio.timeout(PREPARE_TIMEOUT_S):
                await self._start(spec, mounts)
        except ENGINE_ERRORS as error:
            raise SandboxUnavailable(f"the engine: {words(error)}", step="container") from error

    async def _start(self, spec: dict[str, Any], mounts: Mounts) -> None:
        container = await self._engine.containers.create(spec)
        self._container = container
        self.name = container.id[:12]
        host = spec["HostConfig"]
        self._limits = (host["Memory"], host["PidsLimit"])
        stream = container.attach(stdin=True, stdout=True)
        await stream.__aenter__()  # before the start, or its first words would be lost
        ours, theirs = socket.socketpair()
        self._session = Session(ours)
        self._pipe = Pipe(stream, theirs, self._ended)
        await container.start()
        await self._session.ready()
        state = (await container.show())["State"]
        paths = find_group(mounts, container.id, int(state["Pid"]))
        self.sockets_limited = limit_sockets(mounts, paths)
        self._group = Group(mounts, paths)
        self._group.open_counters()
        self._counted = Counted(self._group)
        self._counted.keep()

    # ── what a run needs of it ──

    @property
    def _counters(self) -> RunCounters:
        if self._counted is None:
            raise SandboxUnavailable("the container was not started", step="start")
        return self._counted

    async def _ended(self) -> None:
        """PID 1 is gone: where the kernel took it for memory, only the engine still knows."""
        if self._destroying is not None or self._container is None or self._counted is None:
            return
        with contextlib.suppress(*ENGINE_ERRORS):
            async with asyncio.timeout(ASK_TIMEOUT_S):
                state = (await self._container.show())["State"]
            before = self._counted.oom_kills()
            self._counted.told_kills = int(bool(state.get("OOMKilled")) and before == 0)

    async def run(self, plan: Plan) -> Outcome:
        """See ``ports.Sandbox.run``. The engine sets the run's limits first; others wait."""
        with self._lead.run():
            await self._update(plan)
            return await super().run(plan)

    async def _update(self, plan: Plan) -> None:
        """Have the engine set the run's limits.

        Where what waits inside is larger, v1 refuses the limit; v2 takes it and ends what is there.
        """
        memory, processes = plan.limits.memory_mb * MIB, plan.processes + 1
        if self._limits == (memory, processes) or self._container is None:
            return
        body = {"Memory": memory, "MemorySwap": memory, "PidsLimit": processes}
        before = self._counters.oom_kills()
        try:
            await self._engine._query_json(
                f"containers/{self._container.id}/update", method="POST", data=body
            )
        except DockerError as error:
            if TOO_SMALL not in str(error):
                raise SandboxUnavailable(f"the engine: {words(error)}", step="limits") from error
            self._over = True
        except ENGINE_ERRORS as error:
            raise SandboxUnavailable(f"the engine: {words(error)}", step="limits") from error
        self._over = self._over or self._counters.oom_kills() > before

    def _limit_group(self, plan: Plan) -> None:
        """Done by the engine, above; here its verdict is told."""
        del plan
        if self._over:
            raise SandboxUnavailable("the interpreter is larger than the limit", step="limits")

    def _kill(self) -> None:
        if self._counted is not None:
            self._counted.keep()
        self._killing = asyncio.ensure_future(self._engine_kill())

    async def _engine_kill(self) -> None:
        if self._container is not None:
            with contextlib.suppress(*ENGINE_ERRORS):
                await self._container.kill()

    # ── ending ──

    async def _destroy(self) -> None:
        self._disarm()
        if self._session is not None:
            self._session.close()
        if self._container is not None:
            await remove(self._container)
        if self._pipe is not None:
            await self._pipe.close()
        if self._killing is not None:
            await self._killing
        if self._group is not None:
            self._group.close_counters()
        self._on_gone(self)


async def remove(container: DockerContainer) -> bool:
    """End it and remove it; whether it is gone."""
    try:
        async with asyncio.timeout(REMOVE_TIMEOUT_S):
            await container.delete(force=True, v=True)
    except DockerError as error:
        if error.status in (404, 409):  # gone, or being removed
            return True
        log.warning("container_not_removed", container=container.id[:12], error=str(error))
        return False
    except ENGINE_ERRORS as error:
        log.warning("container_not_removed", container=container.id[:12], error=str(error))
        return False
    return True


def limit_sockets(mounts: Mounts, paths: Mapping[str, Path]) -> bool:
    """Bound what waits in a container's sockets; whether it is bounded.

    cgroup v2 counts it as memory. v1 counts it where it has a limit of its own, which no engine
    sets any more; this process can where it may write the host's cgroup files.
    """
    if mounts.version == 2:
        return True
    try:
        (paths["memory"] / "memory.kmem.tcp.limit_in_bytes").write_text(str(SOCKETS_V1_BYTES))
    except OSError:
        return False
    return True


def find_group(mounts: Mounts, container_id: str, pid: int) -> dict[str, Path]:
    """The container's cgroup directories on this host.

    ``pid`` is of the engine's pid namespace and may be another process's here, or none's: only what
    carries the container's id is believed.

    Raises:
        HostUnfit: this host's cgroup files do not show it.
    """
    told: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            told.update(
                dict.fromkeys(controllers.split(",") if mounts.version == 1 else [""], path)
            )
    found: dict[str, Path] = {}
    for controller, base in mounts.directories.items():
        path = told.get(controller if mounts.version == 1 else "", "")
        names = (
            path.lstrip("/"),
            f"docker/{container_id}",
            f"system.slice/docker-{container_id}.scope",
        )
        there = [base / name for name in names if container_id in name and (base / name).is_dir()]
        if not there:
            raise HostUnfit(
                "the containers' control groups cannot be read here",
                fix="run the service on the engine's host; in a container, mount the host's "
                "/sys/fs/cgroup there, read-only",
            )
        found[controller] = there[0]
    return found
