"""Objects over obstore: a directory today, any store that obstore speaks to with the same code.

An object lives at ``<first two hex digits>/<sha256>``. The store writes it beside its place and
renames it there, so a half-written one is never visible under its name; reading hashes what came
and compares it with the name, so a damaged one is never passed on as whole.

``put`` writes even what is there already. That costs a write and buys the janitor's proof: the
time of an object is the time of its last ``put``. ``put`` and ``delete`` of one name take turns, so
``delete(older_than=…)`` cannot come between looking at the time and removing. (Among several
processes on one store that gap remains, some milliseconds against the janitor's grace of minutes.)

A crash in the middle of a write leaves the part written beside its place, under a name no listing
shows; ``local_objects`` comes with a sweep for those.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from pathlib import Path
from weakref import WeakValueDictionary

import obstore
from obstore.store import LocalStore, ObjectStore

from code_executor.errors import NotFound

_NAME = re.compile(r"[0-9a-f]{64}")
_INLINE_HASH_BYTES = 64 * 1024  # about 0.05 ms; above, a thread hashes
_PIECE_BYTES = 256 * 1024
_LIST_CHUNK = 500


class CorruptObject(Exception):
    """The bytes stored under a name do not hash to it: the disk's or somebody's doing."""

    def __init__(self, sha256: str) -> None:
        super().__init__(f"object {sha256} does not hold what its name says")


class ObstoreObjects:
    """``ports.Objects`` over an obstore store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def put(self, content: bytes) -> str:
        """Store and return the name; survives the death of the process on return."""
        sha256 = await _hash(content)
        async with self._turn(sha256):
            await obstore.put_async(self._store, _place(sha256), content, use_multipart=False)
        return sha256

    async def get(self, sha256: str) -> bytes:
        """All of it.

        Raises:
            NotFound: no such object.
            CorruptObject: it is not what it was.
        """
        try:
            result = await obstore.get_async(self._store, _place(sha256))
            content = (await result.bytes_async()).to_bytes()
        except FileNotFoundError:
            raise _missing() from None
        if await _hash(content) != sha256:
            raise CorruptObject(sha256)
        return content

    async def stream(self, sha256: str) -> AsyncIterator[bytes]:
        """Pieces of at least 256 KiB, but for the last, which waits for the hash to be right.

        Raises:
            NotFound: no such object (on the first piece).
            CorruptObject: in place of the last piece, so that a download ends short.
        """
        try:
            result = await obstore.get_async(self._store, _place(sha256))
        except FileNotFoundError:
            raise _missing() from None
        digest = hashlib.sha256()
        held: bytes | None = None
        async for buffer in result.stream(min_chunk_size=_PIECE_BYTES):
            if held is not None:
                yield held
            held = bytes(buffer)
            digest.update(held)
        if digest.hexdigest() != sha256:
            raise CorruptObject(sha256)
        if held is not None:
            yield held

    async def delete(self, sha256: str, *, older_than: datetime | None = None) -> None:
        """Remove it, unless it was put at ``older_than`` or later; no error when absent."""
        async with self._turn(sha256):
            try:
                place = _place(sha256)
                if older_than is not None:
                    meta = await obstore.head_async(self._store, place)
                    if meta["last_modified"] >= older_than:
                        return
                await obstore.delete_async(self._store, place)
            except (FileNotFoundError, NotFound):
                return

    async def list(self, *, older_than: datetime) -> AsyncIterator[str]:
        """Names of the objects last put before ``older_than``, in no order."""
        async for chunk in obstore.list(self._store, chunk_size=_LIST_CHUNK):
            for meta in chunk:
                name = meta["path"].rpartition("/")[2]
                if meta["last_modified"] < older_than and _NAME.fullmatch(name):
                    yield name

    def _turn(self, sha256: str) -> asyncio.Lock:
        """The lock of a name, shared by whoever holds it now."""
        return self._turns.setdefault(sha256, asyncio.Lock())


def local_objects(
    directory: Path,
) -> tuple[ObstoreObjects, Callable[[datetime], Awaitable[int]]]:
    """Objects in ``directory`` (made if need be, mode 0700), and the sweep for it.

    The sweep takes a time, removes the parts that crashed writers left before it, and returns how
    many.

    Raises:
        OSError: the directory cannot be made.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def sweep(older_than: datetime) -> int:
        return await asyncio.to_thread(_remove_parts, directory, older_than.timestamp())

    return ObstoreObjects(LocalStore(directory)), sweep


def _remove_parts(directory: Path, older_than_s: float) -> int:
    """Parts are named ``<sha256>#<number>`` by the store."""
    removed = 0
    for part in directory.glob("??/*#*"):
        try:
            if part.stat().st_mtime < older_than_s:
                part.unlink()
                removed += 1
        except FileNotFoundError:  # its writer has just finished
            continue
    return removed


def _place(sha256: str) -> str:
    """The path of an object in the store.

    Raises:
        NotFound: not a SHA-256, so not the name of anything.
    """
    if not _NAME.fullmatch(sha256):
        raise _missing()
    return f"{sha256[:2]}/{sha256}"


async def _hash(content: bytes) -> str:
    if len(content) <= _INLINE_HASH_BYTES:
        return hashlib.sha256(content).hexdigest()
    return (await asyncio.to_thread(hashlib.sha256, content)).hexdigest()


def _missing() -> NotFound:
    return NotFound("No such object.")
