"""Objects in a directory (and the same code over another store)."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from obstore.store import MemoryStore

from code_executor.errors import NotFound
from code_executor.model import MIB
from code_executor.objects import CorruptObject, ObstoreObjects, local_objects
from code_executor.ports import Objects

HOUR = timedelta(hours=1)
ABSENT = "0" * 64
NOT_NAMES = ["", "..", "../" * 20 + "etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n", "ab/" * 21]

Sweep = Callable[[datetime], Awaitable[int]]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "data" / "objects"


@pytest.fixture
def local(directory: Path) -> tuple[ObstoreObjects, Sweep]:
    return local_objects(directory)


@pytest.fixture(params=["local", "memory"])
def objects(request: pytest.FixtureRequest, directory: Path) -> Objects:
    if request.param == "memory":
        return ObstoreObjects(MemoryStore())
    return local_objects(directory)[0]


async def collect(pieces: AsyncIterator[bytes]) -> list[bytes]:
    return [piece async for piece in pieces]


async def names(objects: Objects, older_than: datetime) -> set[str]:
    return {name async for name in objects.list(older_than=older_than)}


def now() -> datetime:
    return datetime.now(UTC)


@pytest.mark.parametrize("size", [0, 1, 64 * 1024, 64 * 1024 + 1, 5 * MIB + 1])
async def test_what_is_put_comes_back_under_its_sha256(objects: Objects, size: int) -> None:
    content = os.urandom(size)
    name = await objects.put(content)
    assert name == hashlib.sha256(content).hexdigest()
    assert await objects.get(name) == content
    assert b"".join(await collect(objects.stream(name))) == content


async def test_a_large_object_streams_in_pieces(objects: Objects) -> None:
    name = await objects.put(bytes(MIB))
    pieces = await collect(objects.stream(name))
    assert all(pieces)
    if len(pieces) > 1:  # a store in memory may give it in one
        assert max(map(len, pieces)) < MIB


async def test_the_same_bytes_twice_are_one_object(objects: Objects) -> None:
    assert await objects.put(b"same") == await objects.put(b"same")
    assert len(await names(objects, now() + HOUR)) == 1


async def test_the_same_bytes_put_many_times_at_once_are_one_object(objects: Objects) -> None:
    put = await asyncio.gather(*[objects.put(b"same" * 10_000) for _ in range(20)])
    assert await names(objects, now() + HOUR) == set(put)
    assert await objects.get(put[0]) == b"same" * 10_000


@pytest.mark.parametrize("name", [ABSENT, *NOT_NAMES])
async def test_what_is_not_there_is_not_found_and_may_be_deleted(
    objects: Objects, name: str
) -> None:
    with pytest.raises(NotFound):
        await objects.get(name)
    with pytest.raises(NotFound):
        await collect(objects.stream(name))
    await objects.delete(name)
    await objects.delete(name, older_than=now())


async def test_deleted_is_gone(objects: Objects) -> None:
    name = await objects.put(b"x")
    await objects.delete(name)
    assert await names(objects, now() + HOUR) == set()
    with pytest.raises(NotFound):
        await objects.get(name)


async def test_age_decides_what_is_listed_and_deleted(objects: Objects) -> None:
    name = await objects.put(b"x")
    assert await names(objects, now() - HOUR) == set()
    await objects.delete(name, older_than=now() - HOUR)
    assert await names(objects, now() + HOUR) == {name}
    await objects.delete(name, older_than=now() + HOUR)
    assert await names(objects, now() + HOUR) == set()


async def test_putting_again_makes_young(
    local: tuple[ObstoreObjects, Sweep], directory: Path
) -> None:
    objects, _ = local
    name = await objects.put(b"x")
    _age(directory / name[:2] / name, 2 * HOUR)
    assert await names(objects, now() - HOUR) == {name}
    await objects.put(b"x")
    assert await names(objects, now() - HOUR) == set()
    await objects.delete(name, older_than=now() - HOUR)
    assert await objects.get(name) == b"x"


async def test_a_put_at_the_same_time_as_the_janitors_delete_is_never_lost(
    local: tuple[ObstoreObjects, Sweep], directory: Path
) -> None:
    objects, _ = local
    for round_ in range(100):
        content = b"%d" % (round_ % 5)
        name = await objects.put(content)
        _age(directory / name[:2] / name, 2 * HOUR)
        delete, put = objects.delete(name, older_than=now() - HOUR), objects.put(content)
        await asyncio.gather(*([delete, put] if round_ % 2 else [put, delete]))
        assert await objects.get(name) == content


async def test_locks_are_forgotten(local: tuple[ObstoreObjects, Sweep]) -> None:
    objects, _ = local
    await asyncio.gather(*[objects.put(b"%d" % number) for number in range(50)])
    assert len(objects._turns) == 0  # a leak shows nowhere else


@pytest.mark.parametrize("damage", [b"", b"wrong", bytes(MIB - 1), bytes(MIB) + b"x"])
async def test_a_damaged_object_is_never_passed_on_as_whole(
    local: tuple[ObstoreObjects, Sweep], directory: Path, damage: bytes
) -> None:
    objects, _ = local
    name = await objects.put(bytes(MIB))
    (directory / name[:2] / name).write_bytes(damage)
    with pytest.raises(CorruptObject, match=name):
        await objects.get(name)
    received = bytearray()
    with pytest.raises(CorruptObject, match=name):
        await _receive(objects.stream(name), received)
    assert len(received) < max(len(damage), 1)


async def test_objects_lie_in_shards_in_a_directory_of_our_own(
    local: tuple[ObstoreObjects, Sweep], directory: Path
) -> None:
    objects, _ = local
    name = await objects.put(b"x")
    assert [p.relative_to(directory) for p in directory.rglob("*") if p.is_file()] == [
        Path(name[:2]) / name
    ]
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


async def test_the_parts_of_crashed_writers_are_invisible_and_swept_by_age(
    local: tuple[ObstoreObjects, Sweep], directory: Path
) -> None:
    objects, sweep = local
    name = await objects.put(b"x")
    old, young = (directory / name[:2] / f"{name}#{number}" for number in (1, 2))
    for part in (old, young):
        part.write_bytes(b"half of i")
    _age(old, 2 * HOUR)
    assert await names(objects, now() + HOUR) == {name}
    assert await sweep(now() - HOUR) == 1
    assert not old.exists()
    assert young.exists()
    assert await objects.get(name) == b"x"


async def test_a_part_in_the_way_does_not_hinder_a_put(
    local: tuple[ObstoreObjects, Sweep], directory: Path
) -> None:
    objects, _ = local
    name = hashlib.sha256(b"x").hexdigest()
    (directory / name[:2]).mkdir()
    (directory / name[:2] / f"{name}#1").write_bytes(b"half")
    assert await objects.put(b"x") == name
    assert await objects.get(name) == b"x"


async def test_the_store_writes_beside_the_place_as_the_sweep_expects(
    local: tuple[ObstoreObjects, Sweep], directory: Path
) -> None:
    """The name of a part is the library's own; this notices when it changes."""
    objects, _ = local
    content = bytes(32 * MIB)
    name = hashlib.sha256(content).hexdigest()
    writing = asyncio.create_task(objects.put(content))
    seen: set[str] = set()
    while not writing.done():
        await asyncio.sleep(0.001)
        seen.update(path.name for path in directory.glob("*/*"))
    await writing
    assert seen <= {name, f"{name}#1"}
    assert f"{name}#1" in seen


@given(content=st.binary(max_size=2_000))
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
async def test_any_bytes_come_back(directory: Path, content: bytes) -> None:
    objects, _ = local_objects(directory)
    assert await objects.get(await objects.put(content)) == content


async def _receive(pieces: AsyncIterator[bytes], into: bytearray) -> None:
    async for piece in pieces:
        into += piece


def _age(path: Path, by: timedelta) -> None:
    then = (now() - by).timestamp()
    os.utime(path, (then, then))
