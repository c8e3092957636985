"""Two small writes in a row are one; nothing else changes on the way to the transport."""

import asyncio
from typing import cast

from code_executor.api.server import JOINED_MAX_BYTES, OneWrite


class Recorded:
    """A transport that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[bytes | str] = []

    def write(self, data: bytes) -> None:
        self.told.append(data)

    def close(self) -> None:
        self.told.append("close")

    def abort(self) -> None:
        self.told.append("abort")


def joined() -> tuple[OneWrite, list[bytes | str]]:
    under = Recorded()
    transport = cast(asyncio.Transport, under)
    return OneWrite(transport, asyncio.get_running_loop()), under.told


async def test_a_head_and_its_body_are_one_write() -> None:
    transport, told = joined()
    for answer in (b"1", b"2"):
        transport.write(b"head" + answer)
        transport.write(b"body" + answer)
    assert told == [b"head1body1", b"head2body2"]
    await asyncio.sleep(0)
    assert told == [b"head1body1", b"head2body2"]


async def test_what_stays_alone_goes_out_in_the_next_turn() -> None:
    transport, told = joined()
    transport.write(b"head")
    assert told == []
    await asyncio.sleep(0)
    assert told == [b"head"]
    transport.write(b"body")
    await asyncio.sleep(0)
    assert told == [b"head", b"body"]


async def test_large_pieces_are_not_copied() -> None:
    transport, told = joined()
    large = b"x" * (JOINED_MAX_BYTES + 1)
    transport.write(b"head")
    transport.write(large)
    transport.write(large)
    assert told == [b"head", large, large]


async def test_closing_sends_what_waits_and_dropping_does_not() -> None:
    transport, told = joined()
    transport.write(b"head")
    transport.close()
    assert told == [b"head", "close"]
    transport, told = joined()
    transport.abort()
    assert told == ["abort"]
