"""The native backend where there is no room for one descriptor more."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
from typing import Any

import pytest
from tests.integration.host import (
    ZYGOTE_FLAVOURS,
    give_up_starting,
    hangs,
    launcher,
    nothing_left,
    until,
    zygotes,
)

from code_executor.errors import SandboxUnavailable
from code_executor.model import RunStatus
from code_executor.sandbox.conformance.bench import carry_out, plan
from code_executor.sandbox.launcher import Spawning
from code_executor.sandbox.native import NativeBackend
from code_executor.sandbox.zygote import Zygote

pytestmark = [pytest.mark.sandbox, pytest.mark.asyncio(loop_scope="module")]

HELLO = plan("python", "print('hello')")
OF_EACH_ZYGOTE = (HELLO, plan("python", "import decimal"), plan("python", "import numpy"))


async def works(backend: NativeBackend) -> None:
    outcome = await carry_out(backend, HELLO)
    assert (outcome.status, outcome.stdout.data) == (RunStatus.SUCCEEDED, b"hello\n")


async def joined(backend: NativeBackend) -> int:
    """How many control groups go with a request."""
    sandbox = await backend.prepare("python")
    try:
        return len(sandbox.group.procs())
    finally:
        await sandbox.destroy()


async def test_a_zygote_that_could_not_be_started_anew_is_tried_again_later(
    backend: NativeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object) -> Zygote:
        raise OSError(errno.EMFILE, "Too many open files")

    for zygote in zygotes():
        await zygote.end()
    with monkeypatch.context() as patched:
        patched.setattr(Zygote, "start", full)
        await works(backend)
    assert not zygotes()
    await works(backend)
    assert not zygotes()  # not so soon
    backend._again = dict.fromkeys(backend._again, 0.0)  # the time has passed
    for program in OF_EACH_ZYGOTE:
        await carry_out(backend, program)
    await until(lambda: len(zygotes()) == len(OF_EACH_ZYGOTE) and not backend._again)


async def test_nobody_waits_for_a_zygote_that_is_tried_again(
    backend: NativeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    async def start(*of: object) -> Zygote:
        asked.append(of)
        return await hangs()

    for zygote in backend._zygotes.values():
        zygote.close()
    backend._zygotes.clear()
    backend._again = dict.fromkeys(ZYGOTE_FLAVOURS, 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(Zygote, "start", start)
        async with asyncio.timeout(5):
            await works(backend)
            await works(backend)
        assert len(asked) == 1
        await give_up_starting(backend)
    backend._again = dict.fromkeys(backend._again, 0.0)
    for program in OF_EACH_ZYGOTE:
        await carry_out(backend, program)
    await until(lambda: len(zygotes()) == len(OF_EACH_ZYGOTE) and not backend._again)


@pytest.mark.parametrize("lacking", [1, 2, 4])
async def test_a_zygote_without_room_for_all_descriptors_of_a_request_forks_no_child(
    backend: NativeBackend, lacking: int
) -> None:
    """The last of them are the run's control groups: there would be a limit less."""
    needed = 6 + await joined(backend)
    before = {each.pid: resource.prlimit(each.pid, resource.RLIMIT_NOFILE) for each in zygotes()}
    for pid, (_, hard) in before.items():
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (_lowest(pid, needed - lacking), hard))
    try:
        with pytest.raises(SandboxUnavailable):
            await backend.prepare("python")
    finally:
        for pid, limits in before.items():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    await works(backend)


async def test_a_launcher_without_room_for_a_sandbox_keeps_nothing_of_what_it_made_for_it(
    backend: NativeBackend,
) -> None:
    """It has made a network namespace, the number of which a refusal does not tell."""
    request = 2 + await joined(backend)
    backend.launcher.networks.clear()
    pid = launcher().pid
    before, (soft, hard) = _open(pid), resource.prlimit(pid, resource.RLIMIT_NOFILE)
    namespace, gate = 6, 2
    try:
        for room in (namespace + 1, namespace + gate):
            limit = _lowest(pid, request + room)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, hard))
            with pytest.raises(SandboxUnavailable):
                await backend.prepare("python")
            assert _open(pid) == before
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    await works(backend)


async def test_a_service_without_room_for_a_sandbox_s_pidfd_loses_nothing_but_the_sandbox(
    backend: NativeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    await works(backend)
    assert backend._uids is not None
    free, networks = len(backend._uids._free), len(backend.launcher.networks)
    limits, ask = resource.getrlimit(resource.RLIMIT_NOFILE), backend.launcher.sandbox

    async def ask_with_the_last(*request: Any) -> Spawning:
        spawning = await ask(*request)
        os.close(lowest := os.dup(0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
        return spawning

    monkeypatch.setattr(backend.launcher, "sandbox", ask_with_the_last)
    asked = asyncio.ensure_future(backend.prepare("python"))
    await asyncio.wait({asked}, timeout=0.3)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    with pytest.raises(SandboxUnavailable):
        await asked
    monkeypatch.undo()
    await nothing_left(backend)
    assert (len(backend._uids._free), len(backend.launcher.networks)) == (free, networks)
    await works(backend)


def _lowest(pid: int, room: int) -> int:
    """The limit with which a process can open ``room`` descriptors more."""
    taken = _open(pid)
    free = (fd for fd in range(len(taken) + room) if fd not in taken)
    return [fd for fd, _ in zip(free, range(room), strict=False)][-1] + 1


def _open(pid: int) -> set[int]:
    return {int(fd) for fd in os.listdir(f"/proc/{pid}/fd")}
