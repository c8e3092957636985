"""One watched descriptor for many, and one look for many ends."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from functools import partial

import pytest_asyncio

from code_executor.sandbox import turns
from code_executor.sandbox.turns import Leaving, Readers


@pytest_asyncio.fixture
async def readers() -> AsyncIterator[Readers]:
    made = Readers()
    yield made
    made.close()


async def heard(readers: Readers, count: int) -> list[int]:
    """The numbers of ``count`` sockets, in the order in which they are told to be readable."""
    told: list[int] = []
    pairs = [socket.socketpair() for _ in range(count)]

    def read(number: int) -> None:
        pairs[number][0].recv(9)
        told.append(number)

    for number, (near, far) in enumerate(pairs):
        readers.add_reader(near.fileno(), partial(read, number))
        far.send(b"x")
    async with asyncio.timeout(5):
        while len(told) < count:
            await asyncio.sleep(0)
    for near, far in pairs:
        readers.remove_reader(near.fileno())
        near.close()
        far.close()
    return told


async def test_each_descriptor_has_its_callback(readers: Readers) -> None:
    assert sorted(await heard(readers, 3)) == [0, 1, 2]


async def test_more_than_a_batch_are_all_read(readers: Readers) -> None:
    count = turns.BATCH + 10
    assert sorted(await heard(readers, count)) == list(range(count))


async def test_a_removed_one_is_not_called_even_in_the_same_turn(readers: Readers) -> None:
    told: list[str] = []
    failed: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
    pairs = {name: socket.socketpair() for name in ("a", "b")}

    def first_of_two(name: str) -> None:
        told.append(name)
        for near, _ in pairs.values():
            readers.remove_reader(near.fileno())

    for name, (near, far) in pairs.items():
        readers.add_reader(near.fileno(), partial(first_of_two, name))
        far.send(b"x")
    await asyncio.sleep(0.05)
    assert len(told) == 1
    assert not failed
    for near, far in pairs.values():
        near.close()
        far.close()


async def test_a_closed_one_can_be_told_to_remove_and_to_close_again() -> None:
    before = len(os.listdir("/proc/self/fd"))
    readers = Readers()
    near, far = socket.socketpair()
    readers.add_reader(near.fileno(), lambda: None)
    readers.close()
    readers.remove_reader(near.fileno())
    readers.close()
    near.close()
    far.close()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_what_leaves_is_looked_after_though_nobody_else_comes() -> None:
    leaving = Leaving()
    looked = asyncio.Event()
    leaving.add(looked.set)
    assert not looked.is_set()
    await asyncio.wait_for(looked.wait(), 5)


async def test_whoever_comes_looks_after_those_before_in_order() -> None:
    leaving = Leaving()
    told: list[int] = []
    leaving.add(lambda: told.append(1))
    leaving.add(lambda: told.append(2))
    leaving.look()
    assert told == []  # too early: they end at present
    leaving._due = type(leaving._due)((0.0, look) for _, look in leaving._due)
    leaving.add(lambda: told.append(3))
    assert told == [1, 2]
    async with asyncio.timeout(5):
        while told != [1, 2, 3]:
            await asyncio.sleep(0.001)
