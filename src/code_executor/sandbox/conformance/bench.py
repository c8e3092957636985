"""The bench on which checks try a backend: run a program in a sandbox of its own, and expect.

A check is written for any backend, so it sees only what a caller of the service sees: the plan
that the service would make goes in, an ``Outcome`` comes out. The one exception is
:func:`host_processes`, which looks for marked processes where the host's process table can be
read, to prove that nothing outlives a run.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import Any

from code_executor import languages
from code_executor.model import (
    DEFAULT_LIMITS,
    InputFile,
    Limits,
    Outcome,
    Plan,
    RunRequest,
    RunStatus,
    SourceFile,
)
from code_executor.plan import make_plan
from code_executor.ports import Backend
from code_executor.sandbox.conformance.registry import CheckFailed

SUCCEEDED, FAILED, TIMEOUT = RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.TIMEOUT
OOM, KILLED = RunStatus.OOM, RunStatus.KILLED


def plan(
    language: str,
    code: str,
    *,
    args: tuple[str, ...] = (),
    stdin: str = "",
    env: Mapping[str, str] | None = None,
    files: Mapping[str, bytes] | None = None,
    sources: Mapping[str, str] | None = None,
    **limits: int,
) -> Plan:
    """The plan of a program, by the same code that plans a request; ``code`` is dedented."""
    given = files or {}
    request = RunRequest(
        language=language,
        code=dedent(code),
        args=args,
        stdin=stdin,
        env=tuple((env or {}).items()),
        files=tuple(InputFile(path=path, content=content) for path, content in given.items()),
        sources=tuple(SourceFile(path, text.encode()) for path, text in (sources or {}).items()),
        limits=Limits(
            **{name: limits.get(name, getattr(DEFAULT_LIMITS, name)) for name in Limits.names()}
        ),
    )
    return make_plan(request, _languages()[language], inputs=tuple(given.values()))


@cache
def _languages() -> dict[str, languages.Language]:
    """The shipped languages, with the interpreters that this host has."""
    here = languages.resolve(languages.load(), lambda path: Path(path).exists())
    return languages.by_name(here)


async def carry_out(backend: Backend, plan: Plan) -> Outcome:
    """Prepare a sandbox for ``plan``, run it there, and destroy the sandbox."""
    sandbox = await backend.prepare(plan.flavour)
    try:
        return await sandbox.run(plan)
    finally:
        await sandbox.destroy()


async def run(backend: Backend, language: str, code: str, **given: Any) -> Outcome:
    """:func:`plan` and :func:`carry_out` in one."""
    return await carry_out(backend, plan(language, code, **given))


async def python(backend: Backend, code: str, **given: Any) -> Outcome:
    """Run a Python program."""
    return await run(backend, "python", code, **given)


async def timed(backend: Backend, code: str, **given: Any) -> tuple[Outcome, float]:
    """Run a Python program and take the time of ``Sandbox.run`` alone, in seconds."""
    planned = plan("python", code, **given)
    sandbox = await backend.prepare(planned.flavour)
    try:
        started = time.monotonic()
        outcome = await sandbox.run(planned)
        return outcome, time.monotonic() - started
    finally:
        await sandbox.destroy()


def expect(holds: object, message: str, outcome: Outcome | None = None) -> None:
    """Raise :class:`CheckFailed` unless ``holds``; ``outcome`` is shown when given."""
    if not holds:
        raise CheckFailed(message if outcome is None else f"{message}; got {describe(outcome)}")


def ended(outcome: Outcome, status: RunStatus, **facts: object) -> None:
    """Expect the status and the named fields of ``outcome``."""
    wrong = {k: v for k, v in facts.items() if getattr(outcome, k) != v}
    expect(outcome.status is status and not wrong, f"expected {status} {facts or ''}", outcome)


def printed(outcome: Outcome, stdout: str | bytes) -> None:
    """Expect success with exactly this on stdout."""
    wanted = stdout.encode() if isinstance(stdout, str) else stdout
    expect(outcome.status is SUCCEEDED, f"expected success and {wanted[:200]!r}", outcome)
    expect(outcome.stdout.data == wanted, f"expected stdout {wanted[:200]!r}", outcome)


def told(outcome: Outcome) -> Any:
    """The JSON value that a program printed as its whole output."""
    expect(outcome.status is SUCCEEDED, "expected success and a JSON value", outcome)
    return json.loads(outcome.stdout.data)


def describe(outcome: Outcome) -> str:
    """An outcome in one line, streams cut short."""
    facts = (
        f"{outcome.status} exit_code={outcome.exit_code} signal={outcome.signal} "
        f"phase={outcome.phase} limit_hit={outcome.limit_hit} reason={outcome.reason!r}"
    )
    out, err = outcome.stdout.data, outcome.stderr.data
    return f"{facts} stdout={out[:300]!r}… ({len(out)}) stderr={err[-500:]!r}"


def marker() -> str:
    """A word that no other process on this host has on its command line."""
    return f"conformance-{secrets.token_hex(8)}"


def host_processes(marked: str) -> list[int]:
    """Ids of the host's processes with ``marked`` on their command line."""
    return [pid for pid in _pids() if marked.encode() in _command_line(pid)]


def _pids() -> list[int]:
    table = Path("/proc")
    return [int(p.name) for p in table.iterdir() if p.name.isdigit()] if table.is_dir() else []


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # ended meanwhile, or not ours to read
        return b""
