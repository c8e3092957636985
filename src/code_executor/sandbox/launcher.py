"""The service's side of the launcher and of the zygotes: processes, sockets, requests.

Theory of operation. :class:`Launcher` starts the ground process (:mod:`.ground`), which becomes the
launcher in C (``init/launcher.c``). They speak over a SOCK_SEQPACKET socket, one request and one
answer at a time, descriptors attached; an answer is awaited on the event loop, so a slow clone
holds nobody up. :class:`Zygote` is a warm interpreter that the launcher forked; its command socket
goes with the request for a sandbox, whose init asks for the child (``init/init.c``, ask_zygote) and
tells that it is there (READY).

Each is dead when its socket ends. The owner (``native``) starts a new one then.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import select
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from code_executor.errors import HostUnfit, SandboxUnavailable
from code_executor.sandbox import frames
from code_executor.sandbox.ground import Instructions

ANSWER = struct.Struct("<ii32s")
REQUEST = struct.Struct("<cBBIIII")
WARM_NONE, WARM_EXEC, WARM_ZYGOTE = 0, 1, 2
START_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Spawned:
    """A sandbox's PID 1 as the host holds it; the receiver owns all three descriptors."""

    pid: int
    network: int
    control: socket.socket
    pidfd: int


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

    def encode(self, *, networked: bool) -> bytes:
        """The request packet; ``networked``: a network namespace to use again goes with it."""
        numbers = (self.init_uid, self.program_uid, self.processes, self.scratch_mb)
        head = REQUEST.pack(b"S", self.warm, networked, *numbers)
        argv = frames.string(self.source.encode()) + frames.strings([a.encode() for a in self.argv])
        return head + argv + frames.strings([e.encode() for e in self.env])


def environment(env: Mapping[str, str]) -> list[str]:
    """``NAME=VALUE`` strings."""
    return [f"{name}={value}" for name, value in env.items()]


class Launcher:
    """The launcher process and the requests to it."""

    def __init__(self, process: asyncio.subprocess.Process, sock: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._process = process
        self._socket = sock
        self._lock = asyncio.Lock()
        self._answer: asyncio.Future[tuple[bytes, list[int]]] | None = None
        self.alive = True
        self._loop.add_reader(sock.fileno(), self._readable)

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
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._request(b"?", ())
        except SandboxUnavailable as refused:
            if refused.step == "request":
                return
        except TimeoutError:
            pass
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
        zygote: Zygote | None,
        network: int | None,
    ) -> Spawned:
        """Clone a sandbox's PID 1; it joins the cgroups behind the given descriptors.

        ``zygote`` forks its interpreter. ``network`` is a network namespace that an earlier
        sandbox had, to be used again if it is as good as new; the caller keeps that descriptor,
        and gets one for the namespace taken.

        Raises:
            SandboxUnavailable: a step failed; it is named.
        """
        fds = [*cgroup_procs]
        if zygote is not None:
            fds.append(zygote.fileno())
        if network is not None:
            fds.append(network)
        packet = request.encode(networked=network is not None)
        pid, (taken, control, pidfd) = await self._request(packet, fds)
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, control)
        return Spawned(pid, taken, channel, pidfd)

    async def zygote(self, argv: Sequence[str], env: Sequence[str], fds: Sequence[int]) -> int:
        """Fork and exec a zygote; ``fds``: its command socket and standard streams. Its pidfd."""
        packet = b"Z" + frames.strings([a.encode() for a in argv])
        packet += frames.strings([e.encode() for e in env])
        _, (pidfd,) = await self._request(packet, fds)
        return pidfd

    async def _request(self, packet: bytes, fds: Sequence[int]) -> tuple[int, list[int]]:
        try:
            data, received = await self._exchange(packet, fds)
        except OSError as error:
            self.alive = False
            raise SandboxUnavailable("the launcher is gone", step="launcher") from error
        if len(data) != ANSWER.size:
            self.alive = False
            raise SandboxUnavailable("the launcher is gone", step="launcher")
        error_number, pid, step = ANSWER.unpack(data)
        if error_number:
            for fd in received:
                os.close(fd)
            name = step.rstrip(b"\0").decode()
            raise SandboxUnavailable(f"no sandbox: {os.strerror(error_number)}", step=name)
        return pid, received

    async def _exchange(self, packet: bytes, fds: Sequence[int]) -> tuple[bytes, list[int]]:
        """A request and its answer, taken off the socket even when nobody waits for it any more."""
        await self._lock.acquire()
        self._answer = answer = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda _: self._lock.release())
        try:
            socket.send_fds(self._socket, [packet], list(fds))
        except OSError:
            answer.cancel()
            raise
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            answer.add_done_callback(_discard)
            raise

    def _readable(self) -> None:
        """An answer, or the launcher's end."""
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, 4096, 8)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self.alive = False
            self._loop.remove_reader(self._socket.fileno())
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((data, fds))

    def kill(self) -> None:
        """End the launcher, and with it every zygote and sandbox."""
        self.alive = False
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # whoever waits for an answer sees the end

    async def close(self) -> None:
        """End it and wait for it."""
        self.kill()
        await self._process.wait()
        async with self._lock:
            if self._socket.fileno() >= 0:
                self._loop.remove_reader(self._socket.fileno())
            self._socket.close()


def _discard(answer: asyncio.Future[tuple[bytes, list[int]]]) -> None:
    """Close what came with an answer that nobody waits for: its sandbox ends with its channel."""
    if answer.cancelled() or answer.exception() is not None:
        return
    for fd in answer.result()[1]:
        os.close(fd)


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


class Zygote:
    """A warm interpreter that forks into sandboxes."""

    def __init__(self, name: str, sock: socket.socket, pidfd: int, log: int) -> None:
        self.name = name
        self._socket = sock
        self._pidfd = pidfd
        self._log = log

    @classmethod
    async def start(
        cls, launcher: Launcher, name: str, argv: Sequence[str], env: Sequence[str]
    ) -> Zygote:
        """Start one and wait until it is warm.

        Raises:
            SandboxUnavailable: it did not become warm; its words are in the message.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Its streams are pipes, as a program's are: the interpreter chooses its buffers by that.
        stdin_r, stdin_w = os.pipe()
        log_r, log_w = os.pipe()
        try:
            fds = (theirs.fileno(), stdin_r, log_w, log_w)
            pidfd = await launcher.zygote(argv, env, fds)
        except BaseException:
            ours.close()
            os.close(log_r)
            raise
        finally:
            theirs.close()
            for fd in (stdin_r, stdin_w, log_w):
                os.close(fd)
        ours.setblocking(False)
        os.set_blocking(log_r, False)
        zygote = cls(name, ours, pidfd, log_r)
        await zygote._await_warm()
        return zygote

    async def _await_warm(self) -> None:
        loop = asyncio.get_running_loop()
        said = b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_TIMEOUT_S):
                said = await loop.sock_recv(self._socket, 1)
        if said == b"\0":
            return
        words = self.words()
        self.close()
        raise SandboxUnavailable(f"zygote {self.name} did not start: {words}", step="zygote")

    @property
    def alive(self) -> bool:
        """Whether it has not ended and was not let go."""
        if self._socket.fileno() < 0:
            return False
        ended = select.poll()
        ended.register(self._pidfd, select.POLLIN)
        return not ended.poll(0)

    async def ended(self, within_s: float) -> bool:
        """Whether it has ended, or does so in a moment: its descriptors close a little before."""
        if self.alive:
            await asyncio.sleep(within_s)
        return not self.alive

    def words(self) -> str:
        """What it has written on standard error since last asked (its own, not a program's)."""
        try:
            return os.read(self._log, 8192).decode("utf-8", "replace").strip()
        except BlockingIOError:
            return ""

    def fileno(self) -> int:
        """Its command socket, on which inits ask for children."""
        return self._socket.fileno()

    def close(self) -> None:
        """Let it go: it ends when its socket does."""
        self._socket.close()
        os.close(self._pidfd)
        os.close(self._log)


ZYGOTE_HOME = "opt/ahead/python"


def zygote_files(zygote_library: Path, bootstrap: Path) -> dict[str, Path]:
    """What a zygote loads, by its path in the root."""
    return {
        f"{ZYGOTE_HOME}/zygote.so": zygote_library,
        f"{ZYGOTE_HOME}/sitecustomize.py": bootstrap / "zygote.py",
        f"{ZYGOTE_HOME}/rehearsal.py": bootstrap / "rehearsal.py",
    }
