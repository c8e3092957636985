"""A session against a scripted init: what fits is gathered, what does not ends it."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import pytest
import pytest_asyncio

from code_executor.errors import SandboxUnavailable
from code_executor.model import Limits, Phase, Plan, StagedFile, Step
from code_executor.sandbox import frames
from code_executor.sandbox.frames import Ended, Entry, Kind, frame
from code_executor.sandbox.session import ENTRIES_MAX, Session

T = TypeVar("T")
ENDED = Ended(wait_status=256, user_us=1, system_us=2, maxrss_kb=3, wall_us=4)
END = frame(Kind.ENDED, frames.ENDED.pack(256, 1, 2, 3, 4))
BEGAN = frame(Kind.BEGAN)
LISTED = frame(Kind.LISTED, b"\0")
WHOLE = BEGAN + END + LISTED
PROGRAM = frames.program(warm=False, listing=True, argv=["/bin/true"], env=["A=b"])


def entry(path: bytes, size: int = 1) -> bytes:
    return frame(Kind.ENTRY, frames.ENTRY.pack(ord("f"), 1, size) + path)


def failed(number: int, step: bytes) -> bytes:
    return frame(Kind.FAILED, frames.U32.pack(number) + step)


class Init:
    """The scripted other end: hears what the session sends, answers with what it is told."""

    def __init__(self) -> None:
        near, self._socket = socket.socketpair()
        self._socket.setblocking(False)
        self.session = Session(near)

    async def say(self, said: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, said)

    async def hear(self, size: int) -> bytes:
        """``size`` bytes of the session's, or fewer at the end of the stream."""
        heard = bytearray()
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(5):
            while len(heard) < size and (piece := await loop.sock_recv(self._socket, size)):
                heard += piece
        return bytes(heard)

    def leave(self) -> None:
        self._socket.close()

    async def answer(self, call: Coroutine[Any, Any, T], said: bytes, *, leave: bool = False) -> T:
        """What ``call`` returns when init, having heard it begin, says ``said``."""
        async with asyncio.timeout(5):
            task = asyncio.ensure_future(call)
            await self.hear(1)
            await self.say(said)
            if leave:
                self.leave()
            return await task

    def execute(self) -> Coroutine[Any, Any, Ended]:
        return self.session.execute(["/bin/true"], ["A=b"])


@pytest_asyncio.fixture
async def init() -> AsyncIterator[Init]:
    """An init that has said READY."""
    made = Init()
    await made.say(frame(Kind.READY))
    await made.session.ready()
    yield made
    made.session.close()
    made.leave()


def plan(*, stdin: bytes = b"", files: tuple[StagedFile, ...] = (), output: int = 100) -> Plan:
    return Plan(
        language="python",
        flavour="python",
        warm=False,
        steps=(Step(Phase.RUN, ("/bin/true",)),),
        args=(),
        env=(),
        stdin=stdin,
        files=files,
        limits=Limits(max_output_bytes=output),
        processes=1,
    )


# ── preparing ──


async def test_it_is_prepared_when_init_says_so() -> None:
    init = Init()
    waiting = asyncio.ensure_future(init.session.ready())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    await init.say(frame(Kind.READY))
    await waiting
    init.session.close()
    init.leave()


async def test_a_failed_step_is_named_with_its_reason() -> None:
    init = Init()
    await init.say(failed(errno.EPERM, b"mount /proc"))
    with pytest.raises(SandboxUnavailable) as caught:
        await init.session.ready()
    assert caught.value.step == "mount /proc"
    assert os.strerror(errno.EPERM) in caught.value.message
    init.leave()


@pytest.mark.parametrize("number", [0, 4096, 0xFFFF_FFFF])
async def test_the_name_of_a_step_is_cleaned_and_cut(number: int) -> None:
    init = Init()
    await init.say(failed(number, b"a\x1b[31m\n\xff" + b"x" * 500))
    with pytest.raises(SandboxUnavailable) as caught:
        await init.session.ready()
    assert caught.value.step is not None
    assert caught.value.step.isprintable()
    assert len(caught.value.step) <= 64
    assert "no error number" in caught.value.message
    init.leave()


async def test_a_failure_too_short_for_its_number_is_a_failure_all_the_same() -> None:
    init = Init()
    await init.say(frame(Kind.FAILED, b"\1"))
    with pytest.raises(SandboxUnavailable):
        await init.session.ready()
    init.leave()


@pytest.mark.parametrize("kind", sorted(frames.FROM_INIT - {Kind.READY}))
async def test_only_ready_fits_while_it_is_prepared(kind: Kind) -> None:
    init = Init()
    await init.say(frame(kind, b"\0" * 36))
    with pytest.raises(SandboxUnavailable):
        await init.session.ready()
    assert init.session.closed
    init.leave()


async def test_an_init_that_ends_unprepared_is_a_failure_and_stays_one() -> None:
    init = Init()
    init.leave()
    for _ in range(2):
        with pytest.raises(SandboxUnavailable):
            await init.session.ready()
    with pytest.raises(SandboxUnavailable):
        await init.execute()


async def test_a_frame_that_nobody_asked_for_ends_it(init: Init) -> None:
    await init.say(frame(Kind.STDOUT, b"before the program"))
    assert await init.hear(1) == b""  # the channel is closed
    assert init.session.closed


# ── a program ──


async def test_a_program_s_life_is_gathered(init: Init) -> None:
    told: list[str] = []
    init.session.on_began = lambda: told.append("began")
    init.session.on_ended = lambda: told.append("ended")
    init.session.stage(plan())
    said = [
        BEGAN,
        frame(Kind.STDOUT, b"out"),
        frame(Kind.STDERR, b"err"),
        frame(Kind.STDOUT, b"put"),
        END,
        entry(b"a", 5),
        entry(b"\xff/b"),
        frame(Kind.LISTED, b"\1"),
    ]
    assert await init.answer(init.execute(), b"".join(said)) == ENDED
    assert told == ["began", "ended"]
    assert init.session.stdout.output().data == b"output"
    assert init.session.stderr.output().data == b"err"
    assert init.session.entries == [Entry("f", 1, 5, b"a"), Entry("f", 1, 1, b"\xff/b")]
    assert init.session.entries_truncated


async def test_staging_goes_before_the_program_in_the_same_stream(init: Init) -> None:
    staged = init.session.stage(plan(stdin=b"in", files=(StagedFile("main.py", b"x"),)))
    running = asyncio.ensure_future(init.session.execute(["/bin/true"], ["A=b"], before=staged))
    wanted = frame(Kind.FILE, b"main.py") + frame(Kind.DATA, b"x") + frame(Kind.STDIN, b"in")
    assert await init.hear(len(wanted + PROGRAM)) == wanted + PROGRAM
    await init.say(WHOLE)
    assert await running == ENDED


async def test_the_second_program_s_listing_replaces_the_first_s_and_output_adds_up(
    init: Init,
) -> None:
    init.session.stage(plan())
    first = [BEGAN, frame(Kind.STDERR, b"1"), END, entry(b"compiled"), frame(Kind.LISTED, b"\1")]
    await init.answer(init.execute(), b"".join(first))
    second = [BEGAN, frame(Kind.STDERR, b"2"), END, entry(b"made"), LISTED]
    await init.hear(len(PROGRAM) - 1)
    await init.answer(init.execute(), b"".join(second))
    assert [e.path for e in init.session.entries] == [b"made"]
    assert not init.session.entries_truncated
    assert init.session.stderr.output().data == b"12"


async def test_the_limit_of_output_is_the_plan_s_and_a_flood_is_told(init: Init) -> None:
    floods: list[int] = []
    init.session.on_flood = lambda: floods.append(init.session.stdout.total)
    init.session.stage(plan(output=10))
    piece = frame(Kind.STDOUT, b"x" * frames.PAYLOAD_OUT_MAX)
    needed = 16 * 1024 * 1024 // frames.PAYLOAD_OUT_MAX
    await init.answer(init.execute(), BEGAN + piece * needed + END + LISTED)
    assert floods == []
    await init.hear(len(PROGRAM) - 1)
    await init.answer(init.execute(), BEGAN + piece + END + LISTED)
    assert floods
    assert len(init.session.stdout.output().data) < 100


@pytest.mark.parametrize(
    "said",
    [
        frame(Kind.READY),
        frame(Kind.CONTENT, b"x"),
        frame(Kind.CONTENT_END, b"\0\0\0\0"),
        b"?\0\0\0\0",
        frames.HEADER.pack(Kind.STDOUT, frames.PAYLOAD_OUT_MAX + 1),
        frame(Kind.ENDED, b"short"),
        END + frame(Kind.ENTRY, b"short"),
        LISTED,  # without an end
        failed(errno.ENOENT, b"exec"),
    ],
    ids=repr,
)
async def test_what_does_not_belong_to_a_running_program_ends_it(init: Init, said: bytes) -> None:
    with pytest.raises(SandboxUnavailable):
        await init.answer(init.execute(), said)


@pytest.mark.parametrize("said", [b"", BEGAN, BEGAN + END, BEGAN + END + entry(b"a"), BEGAN[:3]])
async def test_init_may_go_at_any_stage_of_a_program(init: Init, said: bytes) -> None:
    with pytest.raises(SandboxUnavailable):
        await init.answer(init.execute(), said, leave=True)
    assert init.session.closed


async def test_as_many_entries_as_init_may_send_and_not_one_more(init: Init) -> None:
    names = b"".join(entry(b"%d" % n) for n in range(ENTRIES_MAX))
    await init.answer(init.execute(), BEGAN + END + names + LISTED)
    assert len(init.session.entries) == ENTRIES_MAX
    await init.hear(len(PROGRAM) - 1)
    with pytest.raises(SandboxUnavailable):
        await init.answer(init.execute(), BEGAN + END + names + entry(b"more") + LISTED)


async def test_kill_is_asked_for_and_the_end_comes_by_the_ordinary_way(init: Init) -> None:
    running = asyncio.ensure_future(init.execute())
    await init.hear(len(PROGRAM))
    init.session.kill()
    assert await init.hear(5) == frame(Kind.KILL)
    await init.say(WHOLE)
    assert await running == ENDED


async def test_closing_ends_a_call_that_waits(init: Init) -> None:
    running = asyncio.ensure_future(init.execute())
    await init.hear(len(PROGRAM))
    init.session.close()
    with pytest.raises(SandboxUnavailable):
        await running


# ── content ──


async def test_a_file_comes_in_pieces(init: Init) -> None:
    said = [
        frame(Kind.CONTENT, b"ab"),
        frame(Kind.CONTENT, b"c"),
        frame(Kind.CONTENT_END, b"\0\0\0\0"),
    ]
    assert await init.answer(init.session.get(b"a\xff", 3), b"".join(said)) == b"abc"
    asked = frame(Kind.GET, b"a\xff")[1:]
    assert await init.hear(len(asked)) == asked


async def test_what_was_built_is_asked_for_with_its_most_bytes(init: Init) -> None:
    said = frame(Kind.CONTENT, b"ELF") + frame(Kind.CONTENT_END, b"\0\0\0\0")
    assert await init.answer(init.session.built(".bin/main", 3), said) == b"ELF"
    asked = frame(Kind.BUILT, b"\3\0\0\0\x09\0\0\0.bin/main")[1:]
    assert await init.hear(len(asked)) == asked


async def test_a_file_that_cannot_be_read_is_none(init: Init) -> None:
    said = frame(Kind.CONTENT, b"ab") + frame(Kind.CONTENT_END, frames.U32.pack(errno.EIO))
    assert await init.answer(init.session.get(b"a", 10), said) is None


async def test_the_next_file_does_not_begin_with_the_last(init: Init) -> None:
    end = frame(Kind.CONTENT_END, b"\0\0\0\0")
    assert await init.answer(init.session.get(b"a", 9), frame(Kind.CONTENT, b"a") + end) == b"a"
    await init.hear(len(frame(Kind.GET, b"a")) - 1)
    assert await init.answer(init.session.get(b"b", 9), end) == b""


@pytest.mark.parametrize(
    "said",
    [
        frame(Kind.CONTENT, b"abcd"),
        frame(Kind.CONTENT, b"ab") * 2,
        frame(Kind.CONTENT_END, b"\0\0\0"),
        frame(Kind.STDOUT, b"a"),
        frame(Kind.LISTED, b"\0"),
        b"",
    ],
)
async def test_more_content_than_asked_for_or_none_at_all_ends_it(init: Init, said: bytes) -> None:
    with pytest.raises(SandboxUnavailable):
        await init.answer(init.session.get(b"a", 3), said, leave=not said)
