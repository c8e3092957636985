"""Compiled programs that are used again: one tenant's, by everything they were made of.

Theory of operation. The bytes come out of a sandbox after its compile step, when nothing runs
there, and before the program starts: only the compiler's work can be in them. They are made by
whoever wrote the sources, so they are no more trusted than those: they are never executed or
looked into here, and go back only into sandboxes of the same tenant, in place of the same compile
step over the same files. Neither another tenant nor another program of the same one has a way to
the entry: its key is the tenant and the SHA-256 of every file and argument that the step has.
The inputs are among them (``//go:embed`` reads those too).

They live in this process's memory, at most ``max_bytes`` and :data:`ENTRIES_MAX` of them, and die
with it, as the compiler of a process's life is one. When there is no room, the tenant who holds
most loses what he used longest ago: whoever fills the cache displaces himself.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from dataclasses import replace
from typing import NamedTuple

from code_executor.model import Phase, Plan, StagedFile

ENTRIES_MAX = 1024
_INLINE_HASH_BYTES = 256 * 1024  # about 0.2 ms; above, a thread hashes


class Key(NamedTuple):
    """Whose, and of what."""

    tenant: str
    sha256: bytes


class Builds:
    """The binaries; ``max_bytes`` 0 keeps none."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: dict[str, OrderedDict[bytes, bytes]] = {}
        self._sizes: dict[str, int] = {}

    @property
    def size(self) -> int:
        """Bytes kept."""
        return sum(self._sizes.values())

    def __len__(self) -> int:
        return sum(map(len, self._held.values()))

    async def key(self, plan: Plan, tenant: str) -> Key | None:
        """The key of what ``plan`` builds; ``None`` where that is nothing to be kept."""
        if not self._max_bytes or not plan.builds:
            return None
        if sum(len(file.content) for file in plan.files) <= _INLINE_HASH_BYTES:
            return Key(tenant, _digest(plan))
        return Key(tenant, await asyncio.to_thread(_digest, plan))

    def reuse(self, key: Key, plan: Plan) -> Plan | None:
        """``plan`` with its binary staged instead of compiled; ``None`` where there is none."""
        held = self._held.get(key.tenant)
        if held is None or key.sha256 not in held:
            return None
        held.move_to_end(key.sha256)
        return replace(
            plan,
            flavour=plan.built_flavour or plan.flavour,
            warm=False,
            steps=tuple(step for step in plan.steps if step.phase is not Phase.COMPILE),
            files=(*plan.files, StagedFile(plan.builds, held[key.sha256], executable=True)),
            builds="",
        )

    def keep(self, key: Key, binary: bytes) -> None:
        """Remember what was built; one that is too large for the cache is not."""
        if len(binary) > self._max_bytes:
            return
        self._forget(key)
        while self._held and (
            self.size + len(binary) > self._max_bytes or len(self) >= ENTRIES_MAX
        ):
            self._make_room()
        self._held.setdefault(key.tenant, OrderedDict())[key.sha256] = binary
        self._sizes[key.tenant] = self._sizes.get(key.tenant, 0) + len(binary)

    def _make_room(self) -> None:
        tenant = max(self._sizes, key=self._sizes.__getitem__)
        self._forget(Key(tenant, next(iter(self._held[tenant]))))

    def _forget(self, key: Key) -> None:
        held = self._held.get(key.tenant)
        if held is None or key.sha256 not in held:
            return
        self._sizes[key.tenant] -= len(held.pop(key.sha256))
        if not held:
            del self._held[key.tenant], self._sizes[key.tenant]


def _digest(plan: Plan) -> bytes:
    """Over everything that the compile step has, each part with its length before it."""
    parts = [plan.language.encode(), plan.builds.encode()]
    for step in plan.steps:
        if step.phase is Phase.COMPILE:
            parts += [b"step", *(word.encode() for word in step.argv)]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"%d:%b" % (len(part), part))
    for file in plan.files:
        name = file.path.encode()
        digest.update(b"%d:%b %d:" % (len(name), name, len(file.content)))
        digest.update(file.content)
    return digest.digest()
