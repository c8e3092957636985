"""Init's C and a program that a zygote forked: the test is the zygote. See ``test_init_c.py``."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.c.driver import Init, failed, streams, warm

from code_executor.sandbox import frames
from code_executor.sandbox.frames import Kind, frame


class Zygote:
    """What init asks its zygote with."""

    def __init__(self, init: Init) -> None:
        data, fds, _, _ = socket.recv_fds(init.zygote, 16, 8)
        assert data == struct.pack("<I", 64)
        self.init, self.stdin, self.stdout, self.stderr, self.go, self.ending = fds
        self.fds = set(fds)

    def ends(self, status: int) -> None:
        os.write(self.ending, struct.pack("<iIQQQ", status, 0, 1, 2, 3))

    def closes(self, *names: str) -> None:
        for fd in (getattr(self, name) for name in names):
            self.fds.remove(fd)
            os.close(fd)

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


@pytest.fixture
def zygote(drive_init: Path, tmp_path: Path) -> Iterator[tuple[Init, Zygote]]:
    init = Init(drive_init, tmp_path, "zygote")
    zygote = Zygote(init)
    os.write(zygote.go, b"\0")
    init.expect(Kind.READY)
    yield init, zygote
    zygote.close()
    init.kill()


def test_a_forked_program_s_end_comes_from_the_zygote(zygote: tuple[Init, Zygote]) -> None:
    init, program = zygote
    init.send(frame(Kind.STDIN, b"input"), warm("a"))  # its start goes without saying
    assert b"".join(iter(lambda: os.read(program.go, 100), b"")) == b"8\x001\0a\0A=1\0"
    assert os.read(program.stdin, 100) == b"input"
    os.write(program.stdout, b"out")
    assert init.expect(Kind.STDOUT) == b"out"
    os.write(program.stderr, b"last words")
    program.ends(9 << 8)
    got = init.until(Kind.LISTED)
    assert streams(got) == (b"", b"last words")
    (ended,) = [frames.decode_ended(payload) for kind, payload in got if kind is Kind.ENDED]
    assert (ended.wait_status, ended.user_us, ended.system_us, ended.maxrss_kb) == (9 << 8, 1, 2, 3)
    init.leave()


def test_the_end_of_the_output_alone_wakes_nobody(zygote: tuple[Init, Zygote]) -> None:
    """It comes with each program's end, a little before the word of it."""
    init, program = zygote
    init.send(warm("a"))
    assert os.read(program.go, 100)
    os.write(program.stdout, b"out")
    assert init.expect(Kind.STDOUT) == b"out"
    before = asleep(init)
    assert "sleeping" in before[0]
    program.closes("stdout", "stderr")
    assert asleep(init) == before
    program.ends(0)
    assert streams(init.until(Kind.LISTED)) == (b"", b"")
    init.leave()


def asleep(init: Init) -> list[str]:
    """What init does after a moment, and how often it has gone to sleep."""
    time.sleep(0.1)
    pid = str(init.process.pid)
    inside = (Path(f"/proc/{pid}/task/{pid}/children").read_text().split() or [pid])[0]
    lines = Path(f"/proc/{inside}/status").read_text().splitlines()
    return [line for line in lines if line.startswith(("State", "voluntary_ctxt_switches"))]


def test_one_that_dies_without_its_job_has_not_begun(zygote: tuple[Init, Zygote]) -> None:
    init, program = zygote
    init.send(warm("a"))
    assert os.read(program.go, 3)  # not all of it
    program.closes("go")
    program.ends(9)
    assert failed(init) == "warm interpreter died"


@pytest.mark.parametrize("half", [b"", b"\0\0\0\0"])
def test_a_zygote_that_dies_is_told(zygote: tuple[Init, Zygote], half: bytes) -> None:
    init, program = zygote
    init.send(warm())
    os.write(program.ending, half)
    os.close(program.ending)
    program.fds.remove(program.ending)
    assert failed(init) == "zygote died"


def test_a_zygote_that_is_gone_is_told(drive_init: Path, tmp_path: Path) -> None:
    init = Init(drive_init, tmp_path, "deserted")
    assert failed(init) == "zygote"


def test_a_host_that_gives_up_meanwhile_ends_init(drive_init: Path, tmp_path: Path) -> None:
    init = Init(drive_init, tmp_path, "zygote")
    program = Zygote(init)  # its ends stay open: only the channel is closed
    init.leave()
    program.close()
