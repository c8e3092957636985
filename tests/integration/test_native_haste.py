"""What is prepared ahead yields to runs, a run never does: by the control files of the host."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from code_executor.ports import Haste
from code_executor.sandbox import native_sandbox
from code_executor.sandbox.conformance.bench import carry_out, plan
from code_executor.sandbox.native import NativeBackend
from code_executor.sandbox.native_sandbox import NativeSandbox

pytestmark = [pytest.mark.sandbox, pytest.mark.asyncio(loop_scope="module")]


def yields(sandbox: NativeSandbox) -> bool:
    """As the kernel has it."""
    paths = sandbox.group._paths
    file = Path(paths.get("cpu", "/nowhere")) / "cpu.idle"
    if not file.exists():
        pytest.skip("this host has no cpu.idle that the service may write")
    return file.read_text() == "1\n"


@pytest.mark.parametrize("flavour", ["python", "node"])
async def test_it_yields_until_it_is_given_out(backend: NativeBackend, flavour: str) -> None:
    sandbox = await backend.prepare(flavour, Haste(needed=False))
    try:
        assert yields(sandbox)
        source = "print('hello')" if flavour == "python" else "console.log('hello')"
        running = asyncio.ensure_future(sandbox.run(plan(flavour, source)))
        await asyncio.sleep(0)  # its first step, before which nothing of the program runs
        assert not yields(sandbox)
        assert (await running).stdout.data == b"hello\n"
    finally:
        await sandbox.destroy()


async def test_what_is_needed_at_once_does_not_yield_in_a_group_that_did(
    backend: NativeBackend,
) -> None:
    waiting = await backend.prepare("python", Haste(needed=False))
    group = waiting.group
    assert yields(waiting)
    await waiting.destroy()
    sandbox = await backend.prepare("python")
    try:
        assert sandbox.group is group or not group.made  # one that serves again, where it can
        assert not yields(sandbox)
    finally:
        await sandbox.destroy()


async def test_a_preparation_that_becomes_needed_yields_no_more(backend: NativeBackend) -> None:
    haste = Haste(needed=False)
    making = asyncio.ensure_future(backend.prepare("node", haste))
    await asyncio.sleep(0.005)
    haste.need()
    sandbox = await making
    try:
        assert not yields(sandbox)
    finally:
        await sandbox.destroy()


@pytest.mark.parametrize("spare", [False, True])
async def test_patience_with_a_preparation_that_gets_no_time_ends(
    backend: NativeBackend, monkeypatch: pytest.MonkeyPatch, spare: bool
) -> None:
    monkeypatch.setattr(native_sandbox, "PATIENCE_S", 0.0)
    sandbox = await backend.prepare("node", Haste(needed=False, spare=spare))
    try:
        assert yields(sandbox) == spare  # what only adds to a stock has more of it
    finally:
        await sandbox.destroy()


async def test_a_saturated_host_prepares_all_the_same(backend: NativeBackend) -> None:
    """Programs of its own on every processor, which a group that yields never interrupts."""
    burning = plan("python", "while True: pass", timeout_ms=10_000, cpu_ms=20_000)
    runs = [asyncio.ensure_future(carry_out(backend, burning)) for _ in range(os.cpu_count() or 1)]
    await asyncio.sleep(0.5)
    async with asyncio.timeout(native_sandbox.PREPARE_TIMEOUT_S):
        sandbox = await backend.prepare("node", Haste(needed=False))
    assert sandbox.alive()
    await sandbox.destroy()
    for run in runs:
        run.cancel()
    await asyncio.gather(*runs, return_exceptions=True)
