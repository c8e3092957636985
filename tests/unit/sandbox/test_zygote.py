"""A zygote's start and its end, with a launcher that hands its command socket to the test."""

from __future__ import annotations

import os
import signal
import socket
import subprocess

import pytest

from code_executor.errors import SandboxUnavailable
from code_executor.sandbox.zygote import Zygote


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Interpreter:
    """Stands in for a launcher that forks zygotes: hands the command socket to the test."""

    def __init__(self, said: bytes, words: bytes = b"") -> None:
        self.socket: socket.socket | None = None
        self._said = said
        self._words = words

    async def zygote(self, argv: object, env: object, fds: tuple[int, ...]) -> int:
        sock = socket.socket(fileno=os.dup(fds[0]))
        os.write(fds[2], self._words)
        if self._said:
            sock.send(self._said)
            self.socket = sock
        else:
            sock.close()
        self.process = subprocess.Popen(["/bin/sleep", "60"])  # deaf to its socket
        return os.pidfd_open(self.process.pid)

    def close(self) -> None:
        assert self.socket is not None
        self.socket.close()
        self.process.kill()
        self.process.wait()


async def start(interpreter: Interpreter) -> Zygote:
    return await Zygote.start(interpreter, "python", ["/bin/python"], [])  # type: ignore[arg-type]


async def test_a_zygote_is_there_when_it_says_so() -> None:
    interpreter = Interpreter(b"\0", b"a warning\n")
    zygote = await start(interpreter)
    assert zygote.words() == "a warning"
    assert zygote.words() == ""
    zygote.close()
    assert interpreter.socket is not None
    assert interpreter.socket.recv(1) == b""  # it ends with its socket
    assert interpreter.process.poll() is None
    interpreter.close()


async def test_a_zygote_that_does_not_start_says_why_and_leaves_nothing_open() -> None:
    before = descriptors()
    interpreter = Interpreter(b"", b"ImportError: no module")
    with pytest.raises(SandboxUnavailable) as caught:
        await start(interpreter)
    assert "ImportError" in caught.value.message
    assert caught.value.step == "zygote"
    assert descriptors() == before
    assert interpreter.process.wait(5) == -signal.SIGKILL
