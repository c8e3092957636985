"""The native backend without a zygote for a while: nobody waits for it, nothing stays slow."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from tests.integration.host import (
    another_launcher,
    give_up_starting,
    hangs,
    inits,
    launcher,
    processes,
    until,
    zygotes,
    zygotes_back,
)

from code_executor.errors import SandboxUnavailable
from code_executor.model import Outcome, RunStatus
from code_executor.pool import Pool
from code_executor.sandbox import native, native_sandbox
from code_executor.sandbox import zygote as zygote_part
from code_executor.sandbox.conformance.bench import carry_out, plan
from code_executor.sandbox.launcher import UNDER_WAY_MAX, Launcher
from code_executor.sandbox.native import NativeBackend
from code_executor.sandbox.zygote import Zygote
from code_executor.shelf import Size

pytestmark = [pytest.mark.sandbox, pytest.mark.asyncio(loop_scope="module")]

HELLO = plan("python", "print('hello')")


def said(outcome: Outcome) -> bytes:
    assert outcome.status is RunStatus.SUCCEEDED, outcome
    return outcome.stdout.data


async def test_no_run_waits_for_the_one_that_takes_a_dead_one_s_place(
    backend: NativeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    async def start(*of: object) -> Zygote:
        asked.append(of)
        return await hangs()

    monkeypatch.setattr(native, "ZYGOTE_REST_S", 0.0)
    for zygote in zygotes():
        await zygote.end()
    with monkeypatch.context() as patched:
        patched.setattr(Zygote, "start", start)
        async with asyncio.timeout(5):
            outcomes = await asyncio.gather(*(carry_out(backend, HELLO) for _ in range(6)))
            await until(lambda: bool(asked))
        assert [said(outcome) for outcome in outcomes] == [b"hello\n"] * 6
        assert len(asked) == len(backend._starting) == 1  # six have met it
        await give_up_starting(backend)
    await zygotes_back(backend)


async def test_what_waits_without_an_interpreter_is_not_given_out_once_there_is_a_zygote(
    backend: NativeBackend,
) -> None:
    """Another run than before would run out of its CPU time with what it imports."""
    pool = Pool(backend, {"python": Size(2, 2)})
    pool.start()
    await until(lambda: pool.levels()["python"] == 2)
    for zygote in zygotes():
        await zygote.end()  # and what it had forked with it
    cold = await pool.take("python")
    await until(lambda: pool.levels()["python"] == 2)
    assert not cold._warm  # type: ignore[attr-defined]
    await zygotes_back(backend)
    assert cold.alive() is False
    warm = await pool.take("python")
    assert warm._warm  # type: ignore[attr-defined]
    for sandbox in (cold, warm):
        pool.retire(sandbox)
    await pool.close()


async def test_one_that_dies_at_once_is_not_started_again_and_again(
    backend: NativeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    for zygote in zygotes():
        await zygote.end()
    with monkeypatch.context() as patched, capture_logs() as lines:
        patched.setattr(native, "ZYGOTE_REST_S", 60.0)
        for _ in range(5):
            assert said(await carry_out(backend, HELLO)) == b"hello\n"
    assert [line["flavour"] for line in lines if line["event"] == "zygote_died"] == ["python"]
    assert not zygotes()
    await give_up_starting(backend)
    await zygotes_back(backend)


async def test_a_start_that_fails_as_none_should_is_told(
    backend: NativeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> Zygote:
        raise ValueError("a mistake")

    monkeypatch.setattr(native, "ZYGOTE_REST_S", 0.0)
    for zygote in zygotes():
        await zygote.end()
    with monkeypatch.context() as patched, capture_logs() as lines:
        patched.setattr(Zygote, "start", broken)
        assert said(await carry_out(backend, HELLO)) == b"hello\n"
        await until(lambda: not backend._starting)
    assert [line["error"] for line in lines if line["event"] == "zygote_failed"] == ["a mistake"]
    await zygotes_back(backend)


async def test_a_request_survives_one_that_stands_still(
    backend: NativeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with it all others: each that asks it keeps a place for a run until it is given up."""
    stopped = zygotes()
    for zygote in stopped:
        await zygote.end(signal.SIGSTOP)
    with monkeypatch.context() as patched:
        patched.setattr(native_sandbox, "PREPARE_TIMEOUT_S", 0.3)
        asked = asyncio.ensure_future(carry_out(backend, HELLO))
        await until(lambda: len(zygotes()) < len(stopped))
    assert said(await asyncio.wait_for(asked, 10)) == b"hello\n"
    for zygote in zygotes():
        await zygote.end()
    await zygotes_back(backend)


async def test_a_pause_of_the_whole_service_is_nobody_s_standing_still(
    backend: NativeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_sandbox, "PREPARE_TIMEOUT_S", 0.5)
    stopped = zygotes()
    for zygote in stopped:
        await zygote.end(signal.SIGSTOP)
    asked = asyncio.ensure_future(carry_out(backend, HELLO))
    await asyncio.sleep(0.1)
    time.sleep(0.7)
    for zygote in stopped:
        os.kill(zygote.pid, signal.SIGCONT)
    assert said(await asyncio.wait_for(asked, 10)) == b"hello\n"
    assert zygotes() == stopped


async def test_who_waits_for_one_that_stands_still_is_in_no_other_s_way(
    backend: NativeBackend,
) -> None:
    stopped = zygotes()
    for zygote in stopped:
        await zygote.end(signal.SIGSTOP)
    waiting = [asyncio.ensure_future(backend.prepare("python")) for _ in range(UNDER_WAY_MAX)]
    await asyncio.sleep(0.5)
    other = await asyncio.wait_for(backend.prepare("node"), 5)
    assert not any(each.done() for each in waiting)
    for zygote in stopped:
        os.kill(zygote.pid, signal.SIGCONT)
    for sandbox in (other, *await asyncio.gather(*waiting)):
        await sandbox.destroy()


async def test_one_that_hangs_while_it_starts_is_gone(
    backend: NativeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zygote_part, "START_TIMEOUT_S", 0.3)
    there = zygotes()
    with pytest.raises(SandboxUnavailable, match="did not start"):
        await Zygote.start(backend.launcher, "slow", ["/usr/bin/sleep", "1000"], [])
    await until(lambda: zygotes() == there, 2)


async def test_one_that_nobody_reads_does_not_wait_for_that(backend: NativeBackend) -> None:
    """What it says is read when it has died."""
    for zygote in zygotes():
        flags = Path(f"/proc/{zygote.pid}/fdinfo/2").read_text().splitlines()[1].split()[1]
        assert int(flags, 8) & os.O_NONBLOCK


async def test_what_a_dead_one_has_forked_is_cleared_away_without_the_host_s_first_process(
    backend: NativeBackend,
) -> None:
    """That may be slow to wait for what it inherits, and a container's may never do so."""
    sandbox = await backend.prepare("python")
    (init,) = inits()
    (waiting,) = (each for each in processes() if each.parent in {z.pid for z in zygotes()})
    for zygote in zygotes():
        await zygote.end()
    await until(lambda: not os.path.exists(f"/proc/{waiting.pid}"), 0.5)
    await sandbox.destroy()
    assert not os.path.exists(f"/proc/{init.pid}")
    await zygotes_back(backend)


async def test_what_was_prepared_before_a_new_launcher_had_its_zygotes_is_not_given_out(
    backend: NativeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, go = Zygote.start, asyncio.Event()

    async def late(
        launcher: Launcher, name: str, argv: Sequence[str], env: Sequence[str]
    ) -> Zygote:
        await go.wait()
        return await start(launcher, name, argv, env)

    before = launcher()
    await before.end()
    with monkeypatch.context() as patched:
        patched.setattr(Zygote, "start", late)
        noticed = asyncio.ensure_future(backend.prepare("python"))
        await another_launcher(before)
        await until(lambda: backend.launcher.alive)
        cold = await asyncio.wait_for(backend.prepare("python"), 5)
        assert cold.alive()
        assert not cold._warm
        go.set()
        warm = await noticed
    assert warm.alive()
    assert warm._warm
    assert cold.alive() is False
    await asyncio.gather(cold.destroy(), warm.destroy())
