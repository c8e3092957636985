"""Pools for tests, and backends that they show something with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from code_executor.errors import SandboxUnavailable
from code_executor.pool import Pool
from code_executor.ports import Haste
from code_executor.sandbox.fake import FakeBackend, FakeSandbox
from code_executor.shelf import Size

SIZES = {"python": Size(2, 6)}


@asynccontextmanager
async def running(
    backend: FakeBackend, sizes: Mapping[str, Size] = SIZES, **options: Any
) -> AsyncIterator[Pool]:
    pool = Pool(backend, sizes, **({"tick_s": 0.02, "backoff_s": 0.01} | options))
    pool.start()
    try:
        yield pool
    finally:
        await asyncio.wait_for(pool.close(), 5)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.002)


class Slow(FakeBackend):
    """Preparations end when the test says so: ``gates`` has one for each, oldest first."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: list[asyncio.Event] = []
        self.failing = False
        self.opened = False

    def open(self) -> None:
        """Let go whatever waits, now and later."""
        self.opened = True
        for gate in self.gates:
            gate.set()

    async def prepare(self, flavour: str, haste: Haste | None = None) -> FakeSandbox:
        gate = asyncio.Event()
        self.gates.append(gate)
        made = asyncio.ensure_future(super().prepare(flavour, haste))  # notes the haste
        if not self.opened:
            await gate.wait()
        sandbox = await made
        if self.failing:
            self.live.discard(sandbox)
            raise SandboxUnavailable("no", step="clone")
        return sandbox


class Costly(FakeBackend):
    """``cost_s`` by flavour, and what each takes of memory."""

    cost_s: Mapping[str, float] = {"dear": 0.03}
    takes: Mapping[str, int] = {}

    async def prepare(self, flavour: str, haste: Haste | None = None) -> FakeSandbox:
        await asyncio.sleep(self.cost_s.get(flavour, 0))
        self.sandbox_bytes = self.takes.get(flavour, 0)
        return await super().prepare(flavour, haste)
