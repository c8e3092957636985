"""The native backend that closes while something of it is just being made."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from tests.conftest import running_native
from tests.integration.host import launcher, until, zygotes

from code_executor.errors import SandboxUnavailable
from code_executor.model import RunStatus
from code_executor.sandbox import launcher as launching
from code_executor.sandbox import native
from code_executor.sandbox.conformance.bench import carry_out, plan
from code_executor.sandbox.launcher import UNDER_WAY_MAX
from code_executor.sandbox.native import NativeBackend
from code_executor.sandbox.native_sandbox import NativeSandbox

pytestmark = [pytest.mark.sandbox, pytest.mark.asyncio(loop_scope="module")]

DATA = plan("python", "import numpy; print('hello')")


@pytest.mark.parametrize("later_s", [0.0, 0.1])
async def test_a_zygote_that_is_just_starting_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later_s: float
) -> None:
    monkeypatch.setattr(native, "ZYGOTE_REST_S", 0.0)
    before = _open()
    async with running_native(tmp_path) as backend:
        assert isinstance(backend, NativeBackend)
        for zygote in zygotes():
            await zygote.end()
        assert (await carry_out(backend, DATA)).status is RunStatus.SUCCEEDED
        await asyncio.sleep(later_s)
        (starting,) = backend._starting
    assert starting.cancelled()
    assert _open() == before


def _open() -> list[str]:
    """What its descriptors are; one that is gone by now was for listing them."""
    names = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    return sorted(os.readlink(name).partition(":")[0] for name in names if os.path.exists(name))


@pytest.mark.parametrize("later_s", [0.0, 0.001, 0.003, 0.006])
@pytest.mark.parametrize("flavour", ["python", "node"])
async def test_sandboxes_that_are_just_being_prepared_are_gone(
    tmp_path: Path, flavour: str, later_s: float
) -> None:
    """Each belongs to one of two then: to who prepares it, or to who closes."""
    before = _open()
    async with running_native(tmp_path) as backend:
        assert isinstance(backend, NativeBackend)
        tree = backend._tree
        asked = [asyncio.ensure_future(backend.prepare(flavour)) for _ in range(4)]
        await asyncio.sleep(later_s)
    for outcome in await asyncio.gather(*asked, return_exceptions=True):
        if isinstance(outcome, NativeSandbox):
            assert not outcome.alive()
        else:
            assert isinstance(outcome, SandboxUnavailable)
    assert tree is not None
    assert not any(path.exists() for path in tree._paths.values())
    with pytest.raises(SandboxUnavailable):
        await backend.prepare(flavour)
    await until(lambda: _open() == before)


@pytest.mark.parametrize("many", [1, UNDER_WAY_MAX + 8])
@pytest.mark.parametrize("who", ["launcher", "zygotes"])
async def test_it_closes_although_a_helper_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str, many: int
) -> None:
    """Some wait for its answer then, and some to ask the launcher."""
    monkeypatch.setattr(launching, "ANSWER_TIMEOUT_S", 0.3)
    before = _open()
    async with asyncio.timeout(15), running_native(tmp_path) as backend:
        for helper in [launcher()] if who == "launcher" else zygotes():
            await helper.end(signal.SIGSTOP)
        asked = [asyncio.ensure_future(backend.prepare("python")) for _ in range(many)]
        await asyncio.sleep(0.1)
    for outcome in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(outcome, SandboxUnavailable)
    await until(lambda: _open() == before)


async def test_it_starts_no_launcher_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[bool] = []

    async def start() -> None:
        started.append(True)

    async with running_native(tmp_path) as backend:
        monkeypatch.setattr(backend, "_start_launcher", start)
        asked = [asyncio.ensure_future(backend.prepare("python")) for _ in range(4)]
        await asyncio.sleep(0)
        os.kill(launcher().pid, signal.SIGKILL)
    await asyncio.gather(*asked, return_exceptions=True)
    assert not started


async def test_it_starts_no_zygote_any_more(tmp_path: Path) -> None:
    async with running_native(tmp_path) as backend:
        assert isinstance(backend, NativeBackend)
        for zygote in zygotes():
            await zygote.end()
        asked = [asyncio.ensure_future(backend.prepare("python")) for _ in range(4)]
        await asyncio.sleep(0.003)  # they have met the dead one, or are just about to
    await asyncio.gather(*asked, return_exceptions=True)
    assert not backend._starting
