from __future__ import annotations

import json

from code_executor.model import Outcome, Output, Plan, RunStatus
from code_executor.sandbox.conformance.attempts import ATTEMPTS
from code_executor.sandbox.conformance.isolation import sources, try_attempts, verdicts
from code_executor.sandbox.fake import FakeBackend, said

QUICK = [item for item in ATTEMPTS.values() if item.quick]


def line(name: str, *, held: bool) -> str:
    item = ATTEMPTS[name]
    told = {"name": name, "title": item.title, "promise": item.promise, "held": held, "detail": "d"}
    return json.dumps(told) + "\n"


def all_held(_: Plan) -> Outcome:
    return said("".join(line(item.name, held=True) for item in QUICK))


def test_silence_is_not_holding() -> None:
    killed = Outcome(
        RunStatus.KILLED, signal="SIGSYS", stdout=Output(line("mounting", held=True).encode())
    )
    held, silent = verdicts(killed, ["mounting", "kernel_keys"])
    assert (held.name, silent.name) != ("", "")
    by_name = {verdict.name: verdict.held for verdict in (held, silent)}
    assert by_name == {"mounting": True, "kernel_keys": False}


async def test_the_program_is_whole() -> None:
    plans: list[Plan] = []

    def remember(plan: Plan) -> Outcome:
        plans.append(plan)
        return all_held(plan)

    assert all(v.held for v in await try_attempts(FakeBackend(remember), "quick"))
    (plan,) = plans
    assert plan.args == ("quick",)
    assert {file.path for file in plan.files} >= {
        "main.py",
        "attempts/harness.py",
        "attempts/kernel.py",
    }
    assert set(sources()) == {file.path for file in plan.files} - {"main.py"}
