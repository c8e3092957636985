"""The launcher's client against a scripted launcher: requests, answers, and what goes wrong."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from code_executor.errors import HostUnfit, SandboxUnavailable
from code_executor.sandbox import launcher as launching
from code_executor.sandbox.ground import Instructions
from code_executor.sandbox.launcher import (
    ANSWER,
    WARM_EXEC,
    Launcher,
    SandboxRequest,
    Spawned,
    Spawning,
    Unheld,
    environment,
)

REQUEST = SandboxRequest(warm=0, init_uid=1, program_uid=2, processes=3, scratch_mb=4)


class Scripted:
    """The other end of a launcher's socket."""

    def __init__(self, launcher: Launcher, sock: socket.socket) -> None:
        self.launcher = launcher
        self._socket = sock

    async def asked(self) -> bytes:
        """The next request; its descriptors are closed."""
        data, fds = await self.asked_with()
        for fd in fds:
            os.close(fd)
        return data

    async def asked_with(self) -> tuple[bytes, list[int]]:
        """The next request and its descriptors."""
        async with asyncio.timeout(5):
            await asyncio.get_running_loop().run_in_executor(None, self._peek)
        data, fds, _, _ = socket.recv_fds(self._socket, 65536, 8)
        return data, fds

    def _peek(self) -> None:
        self._socket.recv(1, socket.MSG_PEEK)

    def answer(self, *, error: int = 0, pid: int = 7, step: bytes = b"", fds: int = 0) -> None:
        """Answer with so many fresh descriptors."""
        ends = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(fds)]
        socket.send_fds(
            self._socket, [ANSWER.pack(error, pid, 5, step)], [s.fileno() for s in ends]
        )
        for end in ends:
            end.close()

    def say(self, data: bytes) -> None:
        self._socket.send(data)

    def leave(self) -> None:
        self._socket.close()


@pytest_asyncio.fixture
async def scripted() -> AsyncIterator[Scripted]:
    """A client whose process is a sleeper and whose launcher is the test."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    process = await asyncio.create_subprocess_exec("/bin/sleep", "60")
    made = Scripted(Launcher(process, ours), theirs)
    yield made
    made.leave()
    await made.launcher.close()


def close(spawned: Spawned) -> None:
    os.close(spawned.pidfd)


async def spawn(launcher: Launcher) -> Spawned:
    """Ask for a sandbox, and wait for the answer."""
    spawning = await launcher.sandbox(REQUEST, (), None)
    try:
        return await spawning.spawned()
    finally:
        spawning.control.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# ── requests ──


def test_a_sandbox_request_is_numbers_then_counted_strings() -> None:
    request = SandboxRequest(
        warm=WARM_EXEC,
        init_uid=1,
        program_uid=2,
        processes=3,
        scratch_mb=4,
        source="main.js",
        argv=("/bin/x", "y"),
        env=("A=b",),
    )
    strings = b"\7\0\0\0main.js" + b"\2\0\0\0\6\0\0\0/bin/x\1\0\0\0y" + b"\1\0\0\0\3\0\0\0A=b"
    assert request.encode() == b"S\1" + struct.pack("<i4I", -1, 1, 2, 3, 4) + strings
    assert request.encode(network=7)[:6] == b"S\1\7\0\0\0"


def test_an_environment_is_name_value_strings_in_order() -> None:
    assert environment({"B": "1", "A": "x=y"}) == ["B=1", "A=x=y"]


# ── answers ──


async def test_a_sandbox_is_a_pid_a_network_and_a_pidfd(scripted: Scripted) -> None:
    asking = asyncio.ensure_future(spawn(scripted.launcher))
    assert await scripted.asked() == REQUEST.encode()
    scripted.answer(pid=4711, fds=1)
    spawned = await asking
    assert (spawned.pid, spawned.network) == (4711, 5)
    close(spawned)


async def test_init_s_end_of_the_channel_goes_first_and_the_other_is_there_at_once(
    scripted: Scripted,
) -> None:
    spawning = await scripted.launcher.sandbox(REQUEST, (), None)
    _, (inner,) = await scripted.asked_with()
    os.write(inner, b"ready")
    os.close(inner)
    assert spawning.control.recv(16) == b"ready"
    assert spawning.control.recv(16) == b""  # nobody here holds the other end
    spawning.control.close()


async def test_a_network_to_use_again_goes_by_its_number(scripted: Scripted) -> None:
    scripted.launcher.networks.append(7)
    asking = asyncio.ensure_future(spawn(scripted.launcher))
    assert await scripted.asked() == REQUEST.encode(network=7)
    assert not scripted.launcher.networks
    scripted.answer(fds=1)
    close(await asking)


async def test_a_network_whose_sandbox_was_refused_stays(scripted: Scripted) -> None:
    scripted.launcher.networks.append(7)
    asking = asyncio.ensure_future(spawn(scripted.launcher))
    await scripted.asked()
    scripted.answer(error=11, step=b"clone")
    with pytest.raises(SandboxUnavailable):
        await asking
    assert list(scripted.launcher.networks) == [7]


async def test_a_network_whose_request_was_never_sent_stays(scripted: Scripted) -> None:
    waiting = [
        asyncio.ensure_future(spawn(scripted.launcher)) for _ in range(launching.UNDER_WAY_MAX)
    ]
    await asyncio.sleep(0)
    scripted.launcher.networks.append(7)
    asking = asyncio.ensure_future(spawn(scripted.launcher))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert list(scripted.launcher.networks) == [7]
    for each in waiting:
        await scripted.asked()
        scripted.answer(pid=1, fds=1)
        close(await each)


async def test_a_failed_step_is_named_and_what_came_with_it_is_closed(scripted: Scripted) -> None:
    before = descriptors()
    asking = asyncio.ensure_future(spawn(scripted.launcher))
    await scripted.asked()
    scripted.answer(error=errno.ENOSPC, step=b"clone", fds=1)
    with pytest.raises(SandboxUnavailable) as caught:
        await asking
    assert caught.value.step == "clone"
    assert os.strerror(errno.ENOSPC) in caught.value.message
    assert descriptors() == before
    assert scripted.launcher.alive


async def test_a_sandbox_whose_descriptor_was_lost_is_there_all_the_same(
    scripted: Scripted,
) -> None:
    scripted.launcher.networks.append(7)
    asking = asyncio.ensure_future(spawn(scripted.launcher))
    await scripted.asked()
    scripted.answer()
    with pytest.raises(Unheld) as caught:
        await asking
    assert caught.value.network == 5
    assert not scripted.launcher.networks  # it uses that
    assert scripted.launcher.alive


async def test_a_launcher_that_ends_is_noticed(scripted: Scripted) -> None:
    asking = asyncio.ensure_future(spawn(scripted.launcher))
    await scripted.asked()
    scripted.leave()
    with pytest.raises(SandboxUnavailable) as caught:
        await asking
    assert caught.value.step == "launcher"
    assert not scripted.launcher.alive
    assert scripted.launcher.ended()
    before = descriptors()
    with pytest.raises(SandboxUnavailable):
        await scripted.launcher.sandbox(REQUEST, (), None)
    assert descriptors() == before


async def test_the_end_of_a_launcher_that_nobody_asks_is_seen_when_looked_for(
    scripted: Scripted,
) -> None:
    assert not scripted.launcher.ended()
    scripted.leave()
    assert scripted.launcher.ended()
    assert not scripted.launcher.alive


async def test_a_launcher_that_speaks_unasked_is_none(scripted: Scripted) -> None:
    scripted.answer(fds=1)
    before = descriptors()
    assert scripted.launcher.ended()
    assert descriptors() == before  # what came with it is closed


async def test_an_answer_of_another_size_is_no_answer(scripted: Scripted) -> None:
    asking = asyncio.ensure_future(spawn(scripted.launcher))
    await scripted.asked()
    scripted.say(b"short")
    with pytest.raises(SandboxUnavailable):
        await asking
    assert not scripted.launcher.alive


async def test_requests_are_answered_in_order(scripted: Scripted) -> None:
    asking = [asyncio.ensure_future(spawn(scripted.launcher)) for _ in range(3)]
    for _ in asking:
        await scripted.asked()  # none of them waits for the answer to another
    for pid in (1, 2, 3):
        scripted.answer(pid=pid, fds=1)
    spawned = [await each for each in asking]
    assert [each.pid for each in spawned] == [1, 2, 3]
    for each in spawned:
        close(each)


async def test_no_more_requests_are_under_way_than_the_socket_holds(scripted: Scripted) -> None:
    many = launching.UNDER_WAY_MAX + 5
    asking = [asyncio.ensure_future(spawn(scripted.launcher)) for _ in range(many)]
    for pid in range(many):
        await asyncio.sleep(0)
        assert len(scripted.launcher._asked) <= launching.UNDER_WAY_MAX
        await scripted.asked()
        scripted.answer(pid=pid, fds=1)
    spawned = await asyncio.gather(*asking)
    assert [each.pid for each in spawned] == list(range(many))
    for each in spawned:
        close(each)


async def test_a_request_whose_zygote_was_let_go_of_meanwhile_is_not_the_launcher_s_end(
    scripted: Scripted,
) -> None:
    zygote, far = socket.socketpair()
    zygote.close()
    far.close()
    with pytest.raises(SandboxUnavailable) as caught:
        await scripted.launcher.sandbox(REQUEST, (), zygote)
    assert caught.value.step == "zygote"
    assert not scripted.launcher.ended()


async def test_a_number_that_is_another_s_by_now_does_not_go_as_the_zygote(
    scripted: Scripted,
) -> None:
    asked = [
        asyncio.ensure_future(spawn(scripted.launcher)) for _ in range(launching.UNDER_WAY_MAX)
    ]
    zygote, far = socket.socketpair()
    waiting = asyncio.ensure_future(scripted.launcher.sandbox(REQUEST, (), zygote))
    await asyncio.sleep(0.01)
    number = zygote.fileno()
    zygote.close()
    another = os.dup2(far.fileno(), number)
    await scripted.asked()
    scripted.answer(fds=1)
    close(await asked[0])
    with pytest.raises(SandboxUnavailable) as caught:
        await waiting
    assert caught.value.step == "zygote"
    scripted.launcher.kill()
    await asyncio.gather(*asked, return_exceptions=True)
    os.close(another)
    far.close()


async def test_who_was_cancelled_while_he_waited_still_takes_his_own_answer(
    scripted: Scripted,
) -> None:
    spawning = await scripted.launcher.sandbox(REQUEST, (), None)
    first = asyncio.ensure_future(spawning.spawned())
    await scripted.asked()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    scripted.answer(pid=1, fds=1)
    spawned = await spawning.spawned()
    assert spawned.pid == 1
    close(spawned)
    spawning.control.close()


async def test_an_answer_that_came_while_this_process_stood_still_is_one(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "ANSWER_TIMEOUT_S", 0.2)
    asking = asyncio.ensure_future(spawn(scripted.launcher))
    await scripted.asked()
    await asyncio.sleep(0.05)  # it waits
    scripted.answer(pid=4711, fds=1)
    time.sleep(0.5)
    spawned = await asking
    assert spawned.pid == 4711
    close(spawned)
    assert scripted.launcher.alive


async def test_one_that_never_answers_is_gone(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "ANSWER_TIMEOUT_S", 0.1)
    with pytest.raises(SandboxUnavailable, match="the launcher is gone"):
        await asyncio.wait_for(spawn(scripted.launcher), 5)
    assert not scripted.launcher.alive


async def test_a_dropped_answer_leaves_the_next_request_its_own(scripted: Scripted) -> None:
    before = descriptors()
    first: Spawning = await scripted.launcher.sandbox(REQUEST, (), None)
    await scripted.asked()
    first.control.close()
    first._reply.drop()
    second = asyncio.ensure_future(spawn(scripted.launcher))
    scripted.answer(pid=1, fds=1)
    await scripted.asked()
    scripted.answer(pid=2, fds=1)
    spawned = await asyncio.wait_for(second, 5)
    assert spawned.pid == 2
    close(spawned)
    assert descriptors() == before  # the first one's are closed


async def test_closing_it_ends_a_request_that_waits(scripted: Scripted) -> None:
    asking = asyncio.ensure_future(spawn(scripted.launcher))
    await scripted.asked()
    await asyncio.wait_for(scripted.launcher.close(), 5)
    with pytest.raises(SandboxUnavailable):
        await asyncio.wait_for(asking, 5)


# ── starting ──


async def test_a_ground_process_that_fails_tells_its_step(tmp_path: Path) -> None:
    told = Instructions(
        operations=(),
        staging=str(tmp_path / "absent"),
        launcher="/bin/true",
        subuids=None,
        subgids=None,
    )
    before = descriptors()
    with pytest.raises(HostUnfit) as caught:
        await asyncio.wait_for(Launcher.start(told, b"\0" * 8), 30)
    words = caught.value.message
    assert "enter_mount_namespace" in words
    assert caught.value.fix
    await asyncio.sleep(0.1)  # the event loop closes the pipes of a process that has ended
    assert descriptors() <= before


async def test_a_zygote_s_socket_goes_with_the_request_of_its_sandbox(scripted: Scripted) -> None:
    zygote, far = socket.socketpair()
    spawning = await scripted.launcher.sandbox(REQUEST, (), zygote)
    _, (control, sent) = await scripted.asked_with()
    os.write(sent, b"fork")
    assert far.recv(16) == b"fork"
    os.close(control)
    os.close(sent)
    spawning.control.close()
    zygote.close()
    far.close()
