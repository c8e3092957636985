"""The fake keeps the protocol it stands in for."""

from __future__ import annotations

import pytest

from code_executor.errors import SandboxUnavailable
from code_executor.languages import load
from code_executor.model import Plan, Promise, RunRequest, RunStatus
from code_executor.plan import make_plan
from code_executor.ports import Backend
from code_executor.sandbox.fake import FakeBackend, said

PYTHON = next(language for language in load() if language.id == "python")


def plan(code: str = "print(1)") -> Plan:
    return make_plan(RunRequest("python", code), PYTHON, inputs=())


async def test_it_is_a_backend() -> None:
    backend: Backend = FakeBackend(languages=load(), promises=[Promise("P1", "t", True, "e")])
    await backend.start()
    assert [promise.id for promise in await backend.probe()] == ["P1"]
    assert all(status.available for status in await backend.languages())
    await backend.close()


async def test_without_a_script_every_program_prints_ok() -> None:
    sandbox = await FakeBackend().prepare("python")
    assert (await sandbox.run(plan())).stdout.data == b"ok\n"


async def test_a_mapping_answers_by_code_and_a_callable_by_plan() -> None:
    by_code = FakeBackend({"print(1)": said("1\n", stderr="w", exit_code=3)})
    outcome = await (await by_code.prepare("python")).run(plan())
    assert (outcome.status, outcome.exit_code) == (RunStatus.FAILED, 3)
    assert (outcome.stdout.data, outcome.stderr.data) == (b"1\n", b"w")
    by_plan = FakeBackend(lambda plan: said(plan.flavour))
    assert (await (await by_plan.prepare("x")).run(plan())).stdout.data == b"python"


async def test_a_sandbox_runs_once() -> None:
    sandbox = await FakeBackend().prepare("python")
    await sandbox.run(plan())
    with pytest.raises(SandboxUnavailable):
        await sandbox.run(plan())


async def test_destroying_leaves_nothing_and_can_be_repeated() -> None:
    backend = FakeBackend()
    sandbox = await backend.prepare("python")
    assert backend.live == {sandbox}
    await sandbox.destroy()
    await sandbox.destroy()
    assert (backend.live, backend.prepared, sandbox.alive()) == (set(), 1, False)


async def test_failures_are_raised_in_order_once_each() -> None:
    backend = FakeBackend()
    backend.prepare_failures.append(SandboxUnavailable("no", step="clone"))
    with pytest.raises(SandboxUnavailable, match="clone"):
        await backend.prepare("python")
    backend.run_failures.append(SandboxUnavailable("no", step="exec"))
    with pytest.raises(SandboxUnavailable, match="exec"):
        await (await backend.prepare("python")).run(plan())
    assert (await (await backend.prepare("python")).run(plan())).exit_code == 0
    assert len(backend.plans) == 1
