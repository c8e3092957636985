"""A channel passes frames both ways and ends once, with the reason."""

from __future__ import annotations

import asyncio
import socket

import pytest

from code_executor.errors import SandboxUnavailable
from code_executor.sandbox.channel import READ_SIZE, Channel
from code_executor.sandbox.frames import Kind, ProtocolError, frame

BIG = bytes(range(256)) * 16_384  # 4 MiB: no socket takes it at once


class End:
    """What the near end was told, and the far end's socket."""

    def __init__(self, refuse: Exception | None = None) -> None:
        near, self.far = socket.socketpair()
        self.far.setblocking(False)
        self.frames: list[tuple[Kind, bytes]] = []
        self.reasons: list[Exception | None] = []
        self.refuse = refuse
        self.channel = Channel(near, self._frame, self.reasons.append)

    def _frame(self, kind: Kind, payload: bytes) -> None:
        self.frames.append((kind, payload))
        if self.refuse is not None:
            raise self.refuse

    async def closed(self) -> None:
        async with asyncio.timeout(5):
            while not self.channel.closed:
                await asyncio.sleep(0.001)
        self.far.close()


class Answering(End):
    """Sends something for each frame."""

    def _frame(self, kind: Kind, payload: bytes) -> None:
        super()._frame(kind, payload)
        self.channel.send(b"kill")


async def received(sock: socket.socket, size: int) -> bytes:
    """``size`` bytes, or fewer at the end of the stream."""
    loop = asyncio.get_running_loop()
    got = bytearray()
    async with asyncio.timeout(10):
        while len(got) < size and (piece := await loop.sock_recv(sock, 65_536)):
            got += piece
    return bytes(got)


async def test_frames_come_in_order_and_the_end_is_told_once() -> None:
    end = End()
    end.far.send(frame(Kind.READY) + frame(Kind.STDOUT, b"a") + frame(Kind.STDOUT, b"b")[:3])
    end.far.shutdown(socket.SHUT_WR)
    await end.closed()
    assert end.frames == [(Kind.READY, b""), (Kind.STDOUT, b"a")]
    assert end.reasons == [None]
    end.channel.close(ProtocolError("late"))
    assert end.reasons == [None]


async def test_what_does_not_fit_the_socket_is_sent_later_and_in_order() -> None:
    end = End()
    end.channel.send(BIG)
    end.channel.send(b"after")
    assert await received(end.far, len(BIG) + 5) == BIG + b"after"
    end.channel.send(b"and more")  # by the short way again
    assert await received(end.far, 8) == b"and more"
    end.channel.close()
    await end.closed()


async def test_a_broken_frame_closes_the_channel() -> None:
    end = End()
    end.far.send(frame(Kind.READY) + b"?\0\0\0\0" + frame(Kind.READY))
    await end.closed()
    assert end.frames == [(Kind.READY, b"")]
    (reason,) = end.reasons
    assert isinstance(reason, ProtocolError)


@pytest.mark.parametrize("refusal", [ProtocolError("order"), SandboxUnavailable("failed")])
async def test_a_refused_frame_closes_it_and_nothing_comes_after(refusal: Exception) -> None:
    end = End(refusal)
    end.far.send(frame(Kind.READY) + frame(Kind.BEGAN))
    await end.closed()
    assert end.frames == [(Kind.READY, b"")]
    assert end.reasons == [refusal]


async def test_the_other_end_sees_the_close() -> None:
    end = End()
    end.channel.close()
    assert await received(end.far, 1) == b""
    assert end.reasons == [None]
    await end.closed()


async def test_a_close_with_bytes_unsent_does_not_wait_for_them() -> None:
    end = End()
    end.channel.send(BIG)
    end.channel.close()
    assert len(await received(end.far, len(BIG))) < len(BIG)
    await end.closed()


async def test_sending_to_a_peer_that_is_gone_closes_and_does_not_raise() -> None:
    end = End()
    end.far.close()
    end.channel.send(b"x")
    assert end.channel.closed
    end.channel.send(b"y")
    (reason,) = end.reasons
    assert isinstance(reason, OSError)


async def test_the_last_words_of_a_peer_that_is_gone_are_the_reason() -> None:
    told = SandboxUnavailable("died", step="its own")
    end = End(refuse=told)
    end.far.send(frame(Kind.FAILED, b"\0\0\0\0its own"))
    end.far.close()
    end.channel.send(b"x")
    assert end.reasons == [told]


async def test_nothing_overtakes_a_frame_that_is_being_told() -> None:
    """Where a frame is answered and its peer is gone, the rest of it would be read as frames."""
    end = Answering()
    sent = frame(Kind.STDOUT, b"a" * 60_000) * (READ_SIZE // 60_005)
    within = READ_SIZE - len(sent) - 5
    sent += frame(Kind.STDOUT, b"b" * within + frame(Kind.ENDED, b"forged"))
    end.far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * READ_SIZE)
    assert end.far.send(sent) == len(sent)
    end.far.close()
    await end.closed()
    assert end.frames == [(Kind.STDOUT, b"a" * 60_000)]


async def test_a_peer_that_goes_while_bytes_wait_closes_it() -> None:
    end = End()
    end.channel.send(BIG)
    end.far.close()
    await end.closed()
    assert len(end.reasons) == 1


async def test_many_small_frames_in_one_piece_are_all_delivered() -> None:
    end = End()
    sent = [(Kind.STDOUT, b"%d" % n) for n in range(3000)]
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(end.far, b"".join(frame(*each) for each in sent))
    end.far.shutdown(socket.SHUT_WR)
    await end.closed()
    assert end.frames == sent
