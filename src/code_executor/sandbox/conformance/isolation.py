"""Each hostile attempt as a check of its own, in a sandbox of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from code_executor.model import Outcome
from code_executor.ports import Backend
from code_executor.sandbox.conformance import attempts
from code_executor.sandbox.conformance.attempts.harness import Attempt
from code_executor.sandbox.conformance.bench import expect, python
from code_executor.sandbox.conformance.registry import Body, Check, add

TIMEOUT_MS = 30_000  # some walk the whole root, which takes its time in gVisor
MAIN = "import attempts\nattempts.main()\n"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one attempt: ``held`` back or not, and how it got through."""

    name: str
    title: str
    promise: str
    held: bool
    detail: str


@cache
def sources() -> dict[str, str]:
    """The package of attempts as source files beside a main program."""
    directory = files(attempts)
    modules = (entry for entry in directory.iterdir() if entry.name.endswith(".py"))
    return {f"attempts/{entry.name}": entry.read_text("utf-8") for entry in modules}


async def try_attempts(backend: Backend, *names: str) -> tuple[Verdict, ...]:
    """Run the named attempts (``"quick"``: those of the start) in one sandbox of ``backend``."""
    outcome = await python(backend, MAIN, sources=sources(), args=names, timeout_ms=TIMEOUT_MS)
    return verdicts(outcome, names)


def verdicts(outcome: Outcome, names: Iterable[str]) -> tuple[Verdict, ...]:
    """Read what the attempts printed; one that was tried but did not report was not held back."""
    found = {}
    for line in outcome.stdout.data.splitlines():
        verdict = Verdict(**json.loads(line))
        found[verdict.name] = verdict
    wanted = [item for item in attempts.ATTEMPTS.values() if item.name in names]
    if tuple(names) == ("quick",):
        wanted = [item for item in attempts.ATTEMPTS.values() if item.quick]
    return tuple(found.get(item.name) or _silent(item, outcome) for item in wanted)


def _silent(item: Attempt, outcome: Outcome) -> Verdict:
    error = outcome.stderr.data[-300:].decode(errors="replace")
    detail = f"did not report: {outcome.status} {outcome.signal or outcome.exit_code} {error}"
    return Verdict(item.name, item.title, item.promise, held=False, detail=detail)


def _check(item: Attempt) -> Check:
    return Check(f"isolation.{item.name}", item.title, item.promise, "python", _body(item))


def _body(item: Attempt) -> Body:
    async def body(backend: Backend) -> None:
        (verdict,) = await try_attempts(backend, item.name)
        expect(
            verdict.held,
            f"a program could {item.title[0].lower()}{item.title[1:]}: {verdict.detail}",
        )

    return body


for _item in attempts.ATTEMPTS.values():
    add(_check(_item))
