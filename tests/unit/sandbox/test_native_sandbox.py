"""What a sandbox that could not be prepared leaves to others, without a kernel."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from code_executor.errors import SandboxUnavailable
from code_executor.ports import Haste
from code_executor.sandbox import native_sandbox
from code_executor.sandbox.group import Group, Mounts
from code_executor.sandbox.launcher import Launcher, SandboxRequest, Spawned
from code_executor.sandbox.native_sandbox import NativeSandbox
from code_executor.sandbox.session import Session
from code_executor.sandbox.turns import Leaving, Readers

REQUEST = SandboxRequest(warm=0, init_uid=1, program_uid=2, processes=3, scratch_mb=4)


class Empty(Group):
    """A group that nobody has joined yet."""

    def __init__(self) -> None:
        super().__init__(Mounts(2, {"memory": Path("/none")}), {"memory": Path("/none/one")})
        self.made = True

    def make(self, *, memory_bytes: int, processes: int) -> None: ...

    def procs(self) -> list[int]:
        return []

    def empty(self) -> bool:
        return True

    def recycle(self) -> bool:
        return True


class Asked:
    """A launcher, and what it says of a PID 1 whose end is that of a pipe."""

    control = None

    def __init__(self, pidfd: int) -> None:
        self._pidfd = pidfd

    async def sandbox(self, *_request: object) -> Asked:
        return self

    async def spawned(self) -> Spawned:
        return Spawned(7, 0, self._pidfd)


class Mute:
    """The session of an init that says nothing in time."""

    closed = False

    def __init__(self, *_channel: object) -> None: ...

    def deadline(self, seconds: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, lambda: None)

    async def ready(self) -> None:
        raise SandboxUnavailable("init does not answer", step="deadline")

    def close(self) -> None: ...


@pytest.fixture
def pid_1() -> Iterator[tuple[int, int]]:
    """A descriptor that is readable when PID 1 has ended, and what ends it."""
    reader, writer = os.pipe()
    yield reader, writer
    os.close(writer)


async def _fail(monkeypatch: pytest.MonkeyPatch, pidfd: int, gone: list[bool]) -> NativeSandbox:
    monkeypatch.setattr(native_sandbox, "Session", cast("type[Session]", Mute))
    monkeypatch.setattr(NativeSandbox, "_kill", lambda _self: None)
    readers, leaving = Readers(), Leaving()
    sandbox = NativeSandbox(
        "python",
        Empty(),
        "one",
        lambda _one, clean: gone.append(clean),
        readers=readers,
        leaving=leaving,
    )
    asked = cast("Launcher", Asked(pidfd))
    with pytest.raises(SandboxUnavailable):
        await sandbox.start(asked, REQUEST, None, 1, Haste())
    readers.close()
    return sandbox


async def test_an_init_that_may_not_have_joined_yet_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, pid_1: tuple[int, int]
) -> None:
    gone: list[bool] = []
    sandbox = await _fail(monkeypatch, pid_1[0], gone)
    ending = asyncio.ensure_future(sandbox.destroy())
    await asyncio.sleep(0.03)
    assert gone == []
    os.write(pid_1[1], b"x")
    await ending
    assert gone == [True]


async def test_what_an_init_uses_that_does_not_end_is_given_to_nobody(
    monkeypatch: pytest.MonkeyPatch, pid_1: tuple[int, int]
) -> None:
    monkeypatch.setattr(native_sandbox, "REMOVE_TIMEOUT_S", 0.02)
    gone: list[bool] = []
    await (await _fail(monkeypatch, pid_1[0], gone)).destroy()
    assert gone == [False]
