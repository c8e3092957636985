"""The service's side of the launcher: its process, its socket, the requests to it.

Theory of operation. :class:`Launcher` starts the ground process (:mod:`.ground`), which becomes the
launcher in C (``init/launcher.c``). They speak over a SOCK_SEQPACKET socket, descriptors attached:
requests, of which some may be under way, and their answers in the same order. Each request has a
:class:`Reply`, which its owner takes or drops. Nobody is woken by the answer for a sandbox: its
READY, or the end of its control channel, comes later, and the answer is taken off the socket then.

It is dead when its socket ends; one that owes an answer for long is killed by who waits for that.
The owner (``native``) starts a new one then.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import pickle
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Protocol

import structlog

from code_executor.errors import HostUnfit, SandboxUnavailable
from code_executor.sandbox import frames
from code_executor.sandbox.deadline import Deadline
from code_executor.sandbox.ground import Instructions

log = structlog.get_logger(__name__)

ANSWER = struct.Struct("<iii32s")
ANSWER_FDS_MAX = 1
REQUEST = struct.Struct("<cBiIIII")
NO_NETWORK = -1
WARM_NONE, WARM_EXEC, WARM_ZYGOTE = 0, 1, 2
START_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 10.0  # a request takes it a millisecond
UNDER_WAY_MAX = 32  # requests without an answer: they fit into the socket, so sending never waits


@dataclass(frozen=True, slots=True)
class Spawned:
    """A sandbox's PID 1 as the host holds it; the receiver owns the descriptor.

    ``network`` is the launcher's number of the network namespace, by which it can be used again
    (or ``NO_NETWORK``).
    """

    pid: int
    network: int
    pidfd: int


class Unheld(SandboxUnavailable):
    """There is a PID 1, but this process had no room for its descriptor."""

    def __init__(self, network: int) -> None:
        super().__init__("no sandbox: too many open files", step="pidfd")
        self.network = network


@dataclass(frozen=True, slots=True)
class SandboxRequest:
    """What the launcher needs to know of a sandbox (``init/setup.h``, struct sandbox)."""

    warm: int
    init_uid: int
    program_uid: int
    processes: int
    scratch_mb: int
    source: str = ""
    argv: Sequence[str] = ()
    env: Sequence[str] = ()

    def encode(self, *, network: int = NO_NETWORK) -> bytes:
        """The request packet; ``network``: a network namespace to use again."""
        numbers = (self.init_uid, self.program_uid, self.processes, self.scratch_mb)
        head = REQUEST.pack(b"S", self.warm, network, *numbers)
        return head + _ahead(self.source, tuple(self.argv), tuple(self.env))


@cache
def _ahead(source: str, argv: Sequence[str], env: Sequence[str]) -> bytes:
    """What is started ahead; there are as many as there are flavours."""
    strings = frames.strings([a.encode() for a in argv])
    return frames.string(source.encode()) + strings + frames.strings([e.encode() for e in env])


def environment(env: Mapping[str, str]) -> list[str]:
    """``NAME=VALUE`` strings."""
    return [f"{name}={value}" for name, value in env.items()]


class HasSocket(Protocol):
    """A zygote, as far as the launcher is concerned."""

    def fileno(self) -> int:
        """Its command socket."""
        ...


class Reply:
    """The answer to one request. Its owner takes it, or drops it, once."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._said: bytes | None = None
        self._fds: list[int] = []
        self._unwanted = False
        self.waiter: asyncio.Future[None] | None = None

    @property
    def is_there(self) -> bool:
        """Whether the launcher has answered, or is gone."""
        return self._said is not None

    def came(self, said: bytes, fds: list[int]) -> None:
        """The launcher has answered; nothing if it is gone."""
        self._said, self._fds = said, fds
        if self._unwanted:
            self.drop()
        elif self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def take(self, within_s: float | None = None) -> tuple[int, int, list[int]]:
        """Process, network and descriptors; waits for them. Cancelled, it can still be taken.

        Raises:
            SandboxUnavailable: a step failed, which is named, or the launcher is gone, which it is
                if it does not answer within that time (``ANSWER_TIMEOUT_S``).
        """
        if self._said is None:
            self._launcher.look()
        if self._said is None:
            await self._launcher.wait(self, ANSWER_TIMEOUT_S if within_s is None else within_s)
        if not self._said:
            raise gone()
        error_number, pid, network, step = ANSWER.unpack(self._said)
        if error_number:
            self.drop()
            name = step.rstrip(b"\0").decode()
            raise SandboxUnavailable(f"no sandbox: {os.strerror(error_number)}", step=name)
        return pid, network, self._fds

    def drop(self) -> None:
        """Close what came with it, or will come."""
        self._unwanted = True
        while self._fds:
            os.close(self._fds.pop())


class Spawning:
    """A sandbox that was asked for: the host's end of its control channel, and the answer."""

    def __init__(self, reply: Reply, control: socket.socket, refused: Callable[[], None]) -> None:
        self._reply = reply
        self._refused = refused
        self.control = control

    async def spawned(self) -> Spawned:
        """Its PID 1; at once if that has said something.

        Raises:
            Unheld: it is there, and nobody holds it.
            SandboxUnavailable: there is none; as :meth:`Reply.take`.
        """
        try:
            pid, network, fds = await self._reply.take()
        except SandboxUnavailable:
            self._refused()
            raise
        if not fds:
            raise Unheld(network)
        return Spawned(pid, network, fds[0])


def gone() -> SandboxUnavailable:
    """What a request to a launcher that has ended comes to."""
    return SandboxUnavailable("the launcher is gone", step="launcher")


class Launcher:
    """The launcher process and the requests to it."""

    def __init__(self, process: asyncio.subprocess.Process, sock: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._process = process
        self._socket = sock
        self._places = asyncio.Semaphore(UNDER_WAY_MAX)
        self._asked: deque[Reply] = deque()
        self._waiting = 0
        self._lost = False
        self.networks: deque[int] = deque()  # its network namespaces that nobody uses now

    @property
    def alive(self) -> bool:
        """Whether it has not ended, as far as is known."""
        return not self._lost and self._process.returncode is None

    def ended(self) -> bool:
        """Whether it has ended; looks."""
        while not self._lost and self._receive():
            pass
        return not self.alive

    @classmethod
    async def start(cls, told: Instructions, filter_program: bytes) -> Launcher:
        """Start the ground process and wait until it is the launcher.

        Raises:
            HostUnfit: a step of the ground process failed; its words are in the message.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        filter_fd = os.memfd_create("seccomp")
        try:
            os.write(filter_fd, filter_program)
            process = await _start_ground(theirs.fileno(), filter_fd)
        finally:
            theirs.close()
            os.close(filter_fd)
        assert process.stdin is not None
        ours.setblocking(False)
        launcher = cls(process, ours)
        with contextlib.suppress(ConnectionError):
            process.stdin.write(pickle.dumps(told))
            process.stdin.write_eof()
        await launcher._await_start()
        return launcher

    async def _await_start(self) -> None:
        """A request that the launcher must refuse tells that it is there."""
        try:
            await (await self._ask(b"?", ())).take(START_TIMEOUT_S)
        except SandboxUnavailable as refused:
            if refused.step == "request":
                return
        assert self._process.stderr is not None
        self.kill()
        words = (await self._process.stderr.read()).decode("utf-8", "replace").strip()
        await self.close()
        raise HostUnfit(
            f"the sandboxes' root could not be made: {words or 'no answer'}", fix=_advice(words)
        )

    async def sandbox(
        self,
        request: SandboxRequest,
        cgroup_procs: Sequence[int],
        zygote: HasSocket | None,
    ) -> Spawning:
        """Have a sandbox's PID 1 cloned; it joins the cgroups behind the given descriptors.

        ``zygote`` forks its interpreter. The sandbox gets a network namespace of :attr:`networks`,
        if that is as good as new, or a new one; who asked gives it back there.

        Raises:
            SandboxUnavailable: the launcher is gone.
        """
        control, inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        fds = (inner.fileno(), *cgroup_procs)
        network = self.networks.popleft() if self.networks else NO_NETWORK
        try:
            reply = await self._ask(request.encode(network=network), fds, zygote)
        except BaseException:
            control.close()
            self._take_back(network)  # nothing was sent: nobody has used it
            raise
        finally:
            inner.close()
        return Spawning(reply, control, partial(self._take_back, network))

    def _take_back(self, network: int) -> None:
        """A network namespace that was asked for and has got no sandbox."""
        if network != NO_NETWORK:
            self.networks.append(network)

    async def zygote(self, argv: Sequence[str], env: Sequence[str], fds: Sequence[int]) -> int:
        """Fork and exec a zygote; ``fds``: its command socket and standard streams. Its pidfd."""
        packet = b"Z" + frames.strings([a.encode() for a in argv])
        packet += frames.strings([e.encode() for e in env])
        reply = await self._ask(packet, fds)
        try:
            _, network, fds = await reply.take()
        except BaseException:
            reply.drop()
            raise
        if not fds:
            raise Unheld(network)
        return fds[0]

    async def _ask(
        self, packet: bytes, fds: Sequence[int], zygote: HasSocket | None = None
    ) -> Reply:
        """Send a request."""
        if self._places.locked():
            self.look()  # nobody does before the READY of what has been answered
        await self._places.acquire()
        try:
            if self._lost:
                raise gone()
            if zygote is not None:  # only now: the number of one let go of may be another's by now
                fds = (*fds, zygote.fileno())
            socket.send_fds(self._socket, [packet], fds)
        except OSError as error:
            self._places.release()
            if error.errno != errno.EBADF or self._socket.fileno() < 0:
                self._lose()
                raise gone() from error
            # A zygote was let go of while this waited.
            raise SandboxUnavailable(
                "what goes with the request is closed", step="zygote"
            ) from None
        except SandboxUnavailable:
            self._places.release()
            raise
        reply = Reply(self)
        self._asked.append(reply)
        return reply

    def look(self) -> None:
        """Take the answers that are there off the socket."""
        while self._asked and self._receive():
            pass

    def _receive(self) -> bool:
        """Take one answer off the socket, or learn of the launcher's end; whether one was there."""
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, ANSWER.size + 1, ANSWER_FDS_MAX)
        except BlockingIOError:
            return False
        except OSError:
            data, fds = b"", []
        if len(data) != ANSWER.size or not self._asked:
            for fd in fds:
                os.close(fd)
            self._lose()
            return False
        self._places.release()
        self._asked.popleft().came(data, fds)
        return True

    def _lose(self) -> None:
        """It is gone, or speaks out of turn: no request gets an answer any more."""
        self._lost = True
        while self._asked:
            self._places.release()
            self._asked.popleft().came(b"", [])

    async def wait(self, reply: Reply, seconds: float) -> None:
        """Until ``reply`` has come; a launcher that owes it for longer is of no use to anybody."""
        reply.waiter = self._loop.create_future()
        if not self._waiting:
            self._loop.add_reader(self._socket.fileno(), self.look)
        self._waiting += 1
        owed = Deadline(seconds, partial(self._owes, reply))
        try:
            await reply.waiter
        finally:
            owed.cancel()
            self._waiting -= 1
            if not self._waiting and self._socket.fileno() >= 0:
                self._loop.remove_reader(self._socket.fileno())

    def _owes(self, reply: Reply) -> None:
        self.look()
        if not reply.is_there:
            log.warning("launcher_stands_still")
            self.kill()

    def kill(self) -> None:
        """End the launcher, and with it every zygote and sandbox."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._lose()

    async def close(self) -> None:
        """End it and wait for it."""
        self.kill()
        await self._process.wait()
        if self._waiting and self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
        self._socket.close()


async def _start_ground(command_fd: int, filter_fd: int) -> asyncio.subprocess.Process:
    """``python -I -m …ground`` with an empty environment and descriptors 3 and 4."""
    code = (
        "import os,sys;a,b=int(sys.argv[1]),int(sys.argv[2]);"
        "x=os.dup(a) if a<5 else a;y=os.dup(b) if b<5 else b;"
        "os.dup2(x,3);os.dup2(y,4);"
        "from code_executor.sandbox.ground import main;main()"
    )
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-c",
        code,
        str(command_fd),
        str(filter_fd),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        pass_fds=(command_fd, filter_fd),
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        cwd="/",
    )


def _advice(words: str) -> str:
    if "newuidmap" in words or "newgidmap" in words:
        return "apt-get install uidmap"
    if "enter_user_namespace" in words:
        return (
            "sysctl -w kernel.unprivileged_userns_clone=1"
            " kernel.apparmor_restrict_unprivileged_userns=0"
        )
    if "mount_setattr" in words:
        return "boot Linux 5.12 or newer"
    return "run as root, or where unprivileged user namespaces may mount; see docs/install.md"
