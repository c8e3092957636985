"""The native backend when something of it dies, stops, or is not waited for."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from tests.integration.host import (
    Process,
    another_launcher,
    children,
    descriptors,
    groups,
    inits,
    launcher,
    nothing_left,
    processes,
    until,
    zygotes,
)

from code_executor.clock import SystemClock
from code_executor.errors import SandboxUnavailable
from code_executor.model import Outcome, Plan, RunStatus
from code_executor.pool import Pool
from code_executor.sandbox import launcher as launching
from code_executor.sandbox import native_sandbox
from code_executor.sandbox import running as run_part
from code_executor.sandbox.conformance.bench import carry_out, plan
from code_executor.sandbox.native import NativeBackend
from code_executor.sandbox.native_sandbox import NativeSandbox
from code_executor.shelf import Size
from code_executor.worker import Worker

pytestmark = [pytest.mark.sandbox, pytest.mark.asyncio(loop_scope="module")]

HELLO = plan("python", "print('hello')")
ENDLESS = plan("python", "print('began', flush=True)\nwhile True: pass", timeout_ms=1000)
STD = plan("python", "import decimal; print(decimal.Decimal(2))")
DATA = plan("python", "import numpy; print(numpy.arange(3).sum())")
ZYGOTES = 3  # python, python-std, python-data


def said(outcome: Outcome) -> bytes:
    assert outcome.status is RunStatus.SUCCEEDED, outcome
    return outcome.stdout.data


@asynccontextmanager
async def prepared(backend: NativeBackend, flavour: str = "python") -> AsyncIterator[NativeSandbox]:
    sandbox = await backend.prepare(flavour)
    try:
        yield sandbox
    finally:
        await sandbox.destroy()


async def running(backend: NativeBackend, sandbox: NativeSandbox) -> asyncio.Task[Outcome]:
    """An endless program, once it runs."""
    (init,) = inits()
    task = asyncio.ensure_future(sandbox.run(replace(ENDLESS, limits=plan("python", "").limits)))
    await until(lambda: _cpu_ticks(_program(init)) > 2)
    assert not task.done()
    return task


def _program(init: Process) -> Process:
    """The interpreter in a sandbox, whoever forked it: the one with the program's user id."""
    return next(p for each in zygotes() for p in children(each.pid) if p.uid == init.uid + 1)


def _cpu_ticks(process: Process) -> int:
    with open(f"/proc/{process.pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[11])


# ── helpers that die ──


async def test_a_zygote_that_died_is_started_anew_and_the_request_survives(
    backend: NativeBackend,
) -> None:
    for zygote in zygotes():
        await zygote.end()
    assert said(await carry_out(backend, HELLO)) == b"hello\n"
    assert said(await carry_out(backend, STD)) == b"2\n"
    assert said(await carry_out(backend, DATA)) == b"3\n"
    await until(lambda: len(zygotes()) == ZYGOTES)


async def test_what_a_child_inherits_of_its_zygote_is_for_the_child(backend: NativeBackend) -> None:
    """The filter holds the zygote, too; being the kernel's first victim is a child's alone."""
    async with prepared(backend) as sandbox:
        task = await running(backend, sandbox)
        (init,) = inits()
        assert _oom_score_adj(_program(init)) == 500
        assert {_oom_score_adj(zygote) for zygote in zygotes()} == {_oom_score_adj(launcher())}
        for process in (_program(init), *zygotes()):
            assert "\nSeccomp:\t2\n" in Path(f"/proc/{process.pid}/status").read_text()
        task.cancel()


@pytest.mark.parametrize(("flavour", "own", "program"), [("python", 700, 1000), ("node", 600, 900)])
async def test_a_program_is_the_first_victim_wherever_the_service_is(
    backend: NativeBackend, flavour: str, own: int, program: int
) -> None:
    there = Path(f"/proc/{launcher().pid}/oom_score_adj")
    there.write_text(f"{own}")
    for zygote in zygotes():
        await zygote.end()
    assert said(await carry_out(backend, HELLO)) == b"hello\n"
    await until(lambda: not backend._starting)
    async with prepared(backend, flavour):
        (init,) = inits()
        (inside,) = [p for p in processes() if p.uid == init.uid + 1]
        assert (_oom_score_adj(init), _oom_score_adj(inside)) == (own, program)
    there.write_text("0")
    for zygote in zygotes():
        await zygote.end()
    assert said(await carry_out(backend, HELLO)) == b"hello\n"


async def test_a_run_survives_that_its_waiting_interpreter_has_just_died(
    backend: NativeBackend,
) -> None:
    pool = Pool(backend, {"python": Size(3, 3)})
    pool.start()
    for _ in range(5):
        await until(lambda: pool.levels()["python"] == 3)
        for init in inits():
            with suppress(ProcessLookupError):
                os.kill(_of(init).pid, signal.SIGKILL)
        outcome = await Worker(pool, SystemClock()).execute(HELLO, tenant="a")
        assert outcome.status is RunStatus.SUCCEEDED, outcome
        await asyncio.sleep(0.1)
    await pool.close()


def _of(init: Process) -> Process:
    return next(p for p in processes() if p.uid == init.uid + 1)


def _oom_score_adj(process: Process) -> int:
    return int(Path(f"/proc/{process.pid}/oom_score_adj").read_text())


async def test_many_requests_survive_the_death_of_their_zygote(backend: NativeBackend) -> None:
    for zygote in zygotes():
        await zygote.end()
    outcomes = await asyncio.gather(*(carry_out(backend, HELLO) for _ in range(12)))
    assert [said(outcome) for outcome in outcomes] == [b"hello\n"] * 12


async def test_a_request_that_the_zygote_has_taken_to_its_grave_survives(
    backend: NativeBackend,
) -> None:
    for zygote in zygotes():
        await zygote.end(signal.SIGSTOP)
    asked = asyncio.ensure_future(carry_out(backend, HELLO))
    await asyncio.sleep(0.1)
    assert not asked.done()
    for zygote in zygotes():
        await zygote.end()
    assert said(await asyncio.wait_for(asked, 20)) == b"hello\n"


async def test_a_program_whose_zygote_dies_is_a_failure_of_the_service(
    backend: NativeBackend,
) -> None:
    async with prepared(backend) as sandbox:
        task = await running(backend, sandbox)
        for zygote in zygotes():
            await zygote.end()
        with pytest.raises(SandboxUnavailable):
            await asyncio.wait_for(task, 5)
    assert said(await carry_out(backend, HELLO)) == b"hello\n"


async def test_a_launcher_that_died_is_started_anew_and_the_request_survives(
    backend: NativeBackend,
) -> None:
    before = launcher()
    await before.end()
    assert said(await carry_out(backend, HELLO)) == b"hello\n"
    assert launcher() != before
    await until(lambda: len(zygotes()) == ZYGOTES)


async def test_many_requests_survive_the_death_of_the_launcher(backend: NativeBackend) -> None:
    await launcher().end()
    outcomes = await asyncio.gather(*(carry_out(backend, HELLO) for _ in range(12)))
    assert [said(outcome) for outcome in outcomes] == [b"hello\n"] * 12
    await until(lambda: len(zygotes()) == ZYGOTES)


async def test_launchers_that_died_leave_no_descriptor(backend: NativeBackend) -> None:
    open_then: list[int] = []
    for _ in range(4):
        await launcher().end()
        await carry_out(backend, HELLO)
        open_then.append(descriptors(backend))
    assert open_then[-1] <= open_then[0]


async def test_a_program_whose_launcher_dies_ends_with_it(backend: NativeBackend) -> None:
    async with prepared(backend) as sandbox:
        task = await running(backend, sandbox)
        (init,) = inits()
        program = _program(init)
        await launcher().end()
        with pytest.raises(SandboxUnavailable):
            await asyncio.wait_for(task, 5)
        assert not sandbox.alive()
        await until(lambda: not os.path.exists(f"/proc/{program.pid}"))
    assert groups(backend) == set()
    assert said(await carry_out(backend, HELLO)) == b"hello\n"


# ── init, from outside ──


async def test_an_init_has_let_go_of_what_it_asked_the_zygote_with(backend: NativeBackend) -> None:
    async with prepared(backend):
        (init,) = inits()
        kept = [os.readlink(fd) for fd in Path(f"/proc/{init.pid}/fd").iterdir()]
        asked = [os.readlink(f"/proc/self/fd/{z.fileno()}") for z in backend._zygotes.values()]
    assert kept
    assert not set(kept) & set(asked)
    assert not [link for link in kept if "cgroup" in link or "net:" in link]


async def test_an_init_killed_in_a_run_is_a_failure_of_the_service(backend: NativeBackend) -> None:
    async with prepared(backend) as sandbox:
        task = await running(backend, sandbox)
        (init,) = inits()
        program = _program(init)
        await init.end()
        with pytest.raises(SandboxUnavailable):
            await asyncio.wait_for(task, 5)
        await until(lambda: not os.path.exists(f"/proc/{program.pid}"))


async def test_an_init_killed_before_its_run_makes_the_sandbox_dead(backend: NativeBackend) -> None:
    async with prepared(backend) as sandbox:
        assert sandbox.alive()
        (init,) = inits()
        await init.end()
        await until(lambda: not sandbox.alive())
        with pytest.raises(SandboxUnavailable):
            await sandbox.run(HELLO)


async def test_an_init_that_stands_still_does_not_hold_the_deadline_up(
    backend: NativeBackend,
) -> None:
    async with prepared(backend) as sandbox:
        (init,) = inits()
        task = asyncio.ensure_future(sandbox.run(ENDLESS))
        await until(lambda: _cpu_ticks(_program(init)) > 2)
        began = time.monotonic()
        await init.end(signal.SIGSTOP)
        outcome = await asyncio.wait_for(task, 5)
        assert outcome.status is RunStatus.TIMEOUT
        assert time.monotonic() - began < 2
        assert outcome.stdout.data == b"began\n"


async def test_an_init_that_never_begins_is_given_up(
    backend: NativeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_part, "SLACK_S", 0.2)
    async with prepared(backend) as sandbox:
        (init,) = inits()
        await init.end(signal.SIGSTOP)
        with pytest.raises(SandboxUnavailable):
            await asyncio.wait_for(sandbox.run(ENDLESS), 5)


# ── callers that go away ──


async def test_cancelling_a_run_ends_the_program(backend: NativeBackend) -> None:
    async with prepared(backend) as sandbox:
        task = await running(backend, sandbox)
        (init,) = inits()
        program = _program(init)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not os.path.exists(f"/proc/{program.pid}")


async def test_cancelling_a_preparation_at_any_moment_leaves_nothing(
    backend: NativeBackend,
) -> None:
    before = descriptors(backend)
    for step in range(40):
        task = asyncio.ensure_future(backend.prepare(("python", "node", "go")[step % 3]))
        await asyncio.sleep(step * 0.0004)
        task.cancel()
        try:
            sandbox = await task
        except asyncio.CancelledError:
            continue
        await sandbox.destroy()
    assert said(await carry_out(backend, HELLO)) == b"hello\n"
    await nothing_left(backend)
    assert descriptors(backend) <= before


async def test_what_was_asked_of_a_launcher_that_stands_still_is_not_gone_yet(
    backend: NativeBackend,
) -> None:
    stopped = launcher()
    await stopped.end(signal.SIGSTOP)
    asked = asyncio.ensure_future(backend.prepare("python"))
    await asyncio.sleep(0.1)
    asked.cancel()
    await asyncio.sleep(0.1)
    assert backend.live == 1  # a sandbox may come of it: its user ids are nobody else's
    os.kill(stopped.pid, signal.SIGCONT)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asked, 5)
    await nothing_left(backend)
    assert said(await carry_out(backend, HELLO)) == b"hello\n"


async def test_a_launcher_that_does_not_answer_is_ended_with_what_was_asked_of_it(
    backend: NativeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "ANSWER_TIMEOUT_S", 0.2)
    assert backend._uids is not None
    free = len(backend._uids._free)
    stopped = launcher()
    await stopped.end(signal.SIGSTOP)
    asked = asyncio.ensure_future(backend.prepare("python"))
    await asyncio.sleep(0.1)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asked, 5)
    assert backend.live == 0
    assert len(backend._uids._free) == free
    assert groups(backend) == set()
    assert said(await carry_out(backend, HELLO)) == b"hello\n"
    assert launcher() != stopped
    await nothing_left(backend)


async def test_a_request_survives_a_launcher_that_stands_still(
    backend: NativeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_sandbox, "PREPARE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(launching, "ANSWER_TIMEOUT_S", 0.2)
    stopped = launcher()
    await stopped.end(signal.SIGSTOP)
    asked = asyncio.ensure_future(carry_out(backend, HELLO))
    await another_launcher(stopped)
    monkeypatch.undo()  # a start may take its time
    assert said(await asyncio.wait_for(asked, 20)) == b"hello\n"


async def test_destroying_twice_and_at_once_is_destroying(backend: NativeBackend) -> None:
    sandbox = await backend.prepare("python")
    await asyncio.gather(*(sandbox.destroy() for _ in range(3)))
    await sandbox.destroy()
    assert not sandbox.alive()
    with pytest.raises(SandboxUnavailable):
        await sandbox.run(HELLO)


async def test_a_destruction_that_is_cancelled_is_completed_all_the_same(
    backend: NativeBackend,
) -> None:
    sandbox = await backend.prepare("python")
    task = asyncio.ensure_future(sandbox.destroy())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await sandbox.destroy()
    await nothing_left(backend)


# ── steps that fail ──


async def test_a_flavour_that_nobody_knows_is_named(backend: NativeBackend) -> None:
    with pytest.raises(SandboxUnavailable) as caught:
        await backend.prepare("cobol")
    assert caught.value.step == "flavour"


@pytest.mark.parametrize(
    ("argv", "step"),
    [
        (("/no/such/program",), "exec"),
        (("/etc/passwd",), "exec"),
        (("/work",), "exec"),
        (("/usr/bin/env", "x" * 200_000), "exec"),
    ],
    ids=["absent", "not executable", "a directory", "an argument too long"],
)
async def test_a_program_that_cannot_start_is_named(
    backend: NativeBackend, argv: tuple[str, ...], step: str
) -> None:
    cold = replace(HELLO, warm=False, steps=(replace(HELLO.steps[0], argv=argv),))
    with pytest.raises(SandboxUnavailable) as caught:
        await carry_out(backend, cold)
    assert caught.value.step == step


@pytest.mark.parametrize(
    ("change", "step"),
    [
        ({"ahead": ("/no/such/interpreter",)}, "exec"),
        ({"ahead": ("/usr/bin/true",)}, "warm interpreter did not start"),
        ({"source": "../main.js"}, "warm source"),
    ],
)
async def test_an_interpreter_that_cannot_start_ahead_is_named(
    backend: NativeBackend, change: dict[str, object], step: str
) -> None:
    language, flavour = backend._flavours["node"]
    backend._flavours["odd"] = (replace(language, **change), flavour)  # type: ignore[arg-type]
    try:
        with pytest.raises(SandboxUnavailable) as caught:
            await backend.prepare("odd")
    finally:
        del backend._flavours["odd"]
    assert caught.value.step == step


async def test_a_path_that_leads_out_is_refused_by_init_too(backend: NativeBackend) -> None:
    (main, *_) = HELLO.files
    odd: Plan = replace(HELLO, files=(main, replace(main, path="../../etc/x")))
    with pytest.raises(SandboxUnavailable) as caught:
        await carry_out(backend, odd)
    assert caught.value.step == "stage"
