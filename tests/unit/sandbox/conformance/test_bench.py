from __future__ import annotations

import subprocess

import pytest

from code_executor.errors import SandboxUnavailable
from code_executor.model import Outcome, Output, RunStatus
from code_executor.sandbox.conformance import bench
from code_executor.sandbox.conformance.registry import CheckFailed
from code_executor.sandbox.fake import FakeBackend, said


def test_a_plan_is_what_the_service_would_make() -> None:
    plan = bench.plan(
        "python",
        """
            if True:
                print(1)
        """,
        args=("a",),
        stdin="in",
        env={"N": "v"},
        files={"x.txt": b"x"},
        sources={"m.py": "y = 1"},
        timeout_ms=7,
    )
    assert (plan.language, plan.flavour, plan.args, plan.stdin) == (
        "python",
        "python",
        ("a",),
        b"in",
    )
    assert dict(plan.env)["N"] == "v"
    assert {f.path for f in plan.files} == {"main.py", "m.py", "inputs/x.txt"}
    assert plan.files[0].content.startswith(b"\nif True:\n    print(1)\n")
    assert (plan.limits.timeout_ms, plan.limits.cpu_ms) == (7, 5_000)


async def test_every_sandbox_is_destroyed() -> None:
    backend = FakeBackend()
    assert (await bench.python(backend, "print('ok')")).stdout.data == b"ok\n"
    outcome, seconds = await bench.timed(backend, "print('ok')")
    backend.run_failures.append(SandboxUnavailable("gone", step="start"))
    with pytest.raises(SandboxUnavailable):
        await bench.python(backend, "print('ok')")
    assert (outcome.status, seconds >= 0) == (RunStatus.SUCCEEDED, True)
    assert (backend.prepared, backend.live) == (3, set())


def test_expectations_say_what_came() -> None:
    outcome = said("two\n", exit_code=3)
    with pytest.raises(CheckFailed, match=r"expected succeeded.*exit_code=3"):
        bench.ended(outcome, RunStatus.SUCCEEDED)
    with pytest.raises(CheckFailed, match=r"exit_code"):
        bench.ended(outcome, RunStatus.FAILED, exit_code=4)
    with pytest.raises(CheckFailed, match=r"one"):
        bench.printed(said("two\n"), "one\n")
    bench.ended(outcome, RunStatus.FAILED, exit_code=3)
    bench.printed(said("two\n"), b"two\n")


def test_told_is_json() -> None:
    assert bench.told(said('{"a": [1]}')) == {"a": [1]}
    with pytest.raises(CheckFailed):
        bench.told(Outcome(RunStatus.TIMEOUT, stdout=Output(b"{}")))


def test_marked_processes_are_found() -> None:
    marked = bench.marker()
    assert bench.host_processes(marked) == []
    command = ["sh", "-c", "echo begun; read x", marked]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert process.pid in bench.host_processes(marked)
        process.kill()
