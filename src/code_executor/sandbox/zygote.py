"""The service's side of a zygote: a warm interpreter of the launcher's, which forks into sandboxes.

Theory of operation. Its command socket goes with the request for a sandbox, whose init asks for the
child (``init/init.c``, ask_zygote) and tells that it is there (READY). What it writes on standard
error is kept in a pipe for whoever wants to know why it failed. It is dead when its socket ends;
the owner (``native``) starts a new one then.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

from code_executor.errors import SandboxUnavailable
from code_executor.sandbox.build import Binaries
from code_executor.sandbox.launcher import START_TIMEOUT_S, Launcher

ZYGOTE_HOME = "opt/ahead/python"
BOOTSTRAP = Path(__file__).parent / "bootstrap"
AHEAD = ("node.js", "ruby.rb", "php.php")


class Zygote:
    """A warm interpreter that forks into sandboxes."""

    def __init__(self, name: str, sock: socket.socket, pidfd: int, log: int) -> None:
        self.name = name
        self._socket = sock
        self._pidfd = pidfd
        self._log = log
        self.since = asyncio.get_running_loop().time()
        """When it was started, by the loop's clock."""
        self.forked = 0
        """How many children of it are known to have come to be."""

    @classmethod
    async def start(
        cls, launcher: Launcher, name: str, argv: Sequence[str], env: Sequence[str]
    ) -> Zygote:
        """Start one and wait until it is warm.

        Raises:
            SandboxUnavailable: it did not become warm; its words are in the message.
            OSError: there is no room for its descriptors.
        """
        with contextlib.ExitStack() as its, contextlib.ExitStack() as kept:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            kept.enter_context(ours)
            its.enter_context(theirs)
            # Pipes, as a program's streams are: the interpreter chooses its buffers by that.
            stdin_r, stdin_w = os.pipe()
            its.callback(os.close, stdin_r)
            its.callback(os.close, stdin_w)
            log_r, log_w = os.pipe()
            kept.callback(os.close, log_r)
            its.callback(os.close, log_w)
            os.set_blocking(log_w, False)  # it is read at the end only, and may be full before
            fds = (theirs.fileno(), stdin_r, log_w, log_w)
            pidfd = await launcher.zygote(argv, env, fds)
            kept.pop_all()
        ours.setblocking(False)
        os.set_blocking(log_r, False)
        zygote = cls(name, ours, pidfd, log_r)
        await zygote._await_warm()
        return zygote

    async def _await_warm(self) -> None:
        loop = asyncio.get_running_loop()
        said = b""
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(START_TIMEOUT_S):
                    said = await loop.sock_recv(self._socket, 1)
        except BaseException:
            self.kill()  # one that hangs does not look at its socket
            self.close()
            raise
        if said == b"\0":
            return
        words = self.words()
        self.kill()
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

    def kill(self) -> None:
        """End it, and with it what it has forked: for one that does not answer."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Let it go: it ends when its socket does."""
        self._socket.close()
        os.close(self._pidfd)
        os.close(self._log)


def warm_files(built: Binaries) -> dict[str, Path]:
    """What interpreters load that are warm before their job comes, by its path in the root."""
    return {
        **{f"opt/ahead/{name}": BOOTSTRAP / name for name in AHEAD},
        "opt/ahead/node.so": built.node,
        f"{ZYGOTE_HOME}/zygote.so": built.zygote,
        f"{ZYGOTE_HOME}/sitecustomize.py": BOOTSTRAP / "zygote.py",
        f"{ZYGOTE_HOME}/rehearsal.py": BOOTSTRAP / "rehearsal.py",
    }
