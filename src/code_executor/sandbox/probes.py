"""The look at a host before the service starts: hostile probes in a real sandbox, and languages.

For any backend. Each promise gets one row that says what was tried and seen; a row that is not
kept stops the start (``readiness.refuse_broken``) unless the operator has waived it by name. The
probes are few and short; the whole set is the conformance suite (``code-executor check --full``).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial

from code_executor.errors import SandboxUnavailable
from code_executor.languages import Language
from code_executor.model import (
    LanguageStatus,
    Limits,
    Outcome,
    Phase,
    Plan,
    Promise,
    RunRequest,
    RunStatus,
    SourceFile,
    Step,
)
from code_executor.plan import make_plan
from code_executor.ports import Backend
from code_executor.sandbox.differs import reasons

CLOSED = "it fails closed"
QUICK_MAIN = "from attempts import main\nmain()\n"
_VERSION = re.compile(rb"\d+\.\d+[\w.+~-]*")
PACKAGES_LIMITS = Limits(timeout_ms=10_000, memory_mb=512, cpu_ms=10_000)


async def run_once(backend: Backend, plan: Plan) -> Outcome:
    """Prepare, run, destroy.

    Raises:
        SandboxUnavailable: the machinery failed.
    """
    sandbox = await backend.prepare(plan.flavour)
    try:
        return await sandbox.run(plan)
    finally:
        await sandbox.destroy()


def _plan(python: Language, code: str, *, limits: Limits | None = None) -> Plan:
    request = RunRequest(language=python.id, code=code, limits=limits or Limits())
    return make_plan(request, python, inputs=[])


def _row(promise: str, title: str, kept: bool, evidence: str, fix: str) -> Promise:
    return Promise(promise, title, kept, evidence, None if kept else fix)


async def _hostile(backend: Backend, python: Language) -> Sequence[Promise]:
    """P1 and P7: the quick hostile attempts, and exactly the documented environment."""
    # Here, since what it brings in takes a moment that nothing else needs.
    from code_executor.sandbox.conformance.isolation import sources, verdicts

    staged = tuple(SourceFile(name, text.encode()) for name, text in sources().items())
    request = RunRequest(language=python.id, code=QUICK_MAIN, args=("quick",), sources=staged)
    outcome = await run_once(backend, make_plan(request, python, inputs=[]))
    tried = verdicts(outcome, ("quick",))
    differs = reasons(backend.name)
    free = [verdict for verdict in tried if not verdict.held]
    own = [verdict.name for verdict in free if f"isolation.{verdict.name}" in differs]
    through = [f"{verdict.title}: {verdict.detail}" for verdict in free if verdict.name not in own]
    kept = outcome.status is RunStatus.SUCCEEDED and not through
    said = outcome.stderr.data.decode("utf-8", "replace")[-200:]
    held = f"{len(tried) - len(own)} hostile attempts held {said}".strip()
    if own:
        held += f"; see docs/backends.md for {', '.join(own)}"
    evidence = "; ".join(through) or held
    environment = await run_once(
        backend, _plan(python, "import os\nfor n in sorted(os.environ): print(n, os.environ[n])\n")
    )
    plan = _plan(python, "")
    expected = "".join(f"{name} {value}\n" for name, value in sorted(plan.env))
    clean = environment.stdout.data.decode() == expected
    return (
        _row("P1", "no way out of the sandbox", kept, evidence, "code-executor check --full"),
        _row(
            "P7",
            "no secret in the sandbox",
            clean,
            f"the environment has {len(plan.env)} variables, all of them documented"
            if clean
            else "the environment differs from the documented one",
            "report this: SECURITY.md",
        ),
    )


async def _deadline(backend: Backend, python: Language) -> Sequence[Promise]:
    """P2 and P3: a program that never ends, with a child in a session of its own."""
    code = "import os, time\nif os.fork() == 0: os.setsid()\nwhile True: time.sleep(9)\n"
    loop = asyncio.get_running_loop()
    began = loop.time()
    outcome = await run_once(backend, _plan(python, code, limits=Limits(timeout_ms=100)))
    took = loop.time() - began
    kept = outcome.status is RunStatus.TIMEOUT
    ended = f"an endless program with a daemon ended as {outcome.status} and was destroyed"
    return (
        _row("P2", "nothing of a run outlives it", kept, ended, "see the service's log"),
        _row(
            "P3",
            "every run ends by its deadline",
            kept and outcome.usage.wall_ms < 1100,
            f"timeout_ms 100 ended after {outcome.usage.wall_ms} ms ({took:.1f} s in all)",
            "see the service's log",
        ),
    )


async def _memory(backend: Backend, python: Language) -> Sequence[Promise]:
    """P4: more memory than allowed, by tmpfs and heap together."""
    code = "open('/dev/shm/x', 'wb').write(b'x' * (24 << 20))\nx = bytearray(24 << 20)\nprint(1)\n"
    outcome = await run_once(backend, _plan(python, code, limits=Limits(memory_mb=32)))
    return (
        _row(
            "P4",
            "memory, processes and time are bounded",
            outcome.status is RunStatus.OOM,
            f"48 MiB in a run of 32 MiB ended as {outcome.status}",
            "enable the memory controller: docs/install.md",
        ),
    )


async def _neighbours(backend: Backend, python: Language, *, host_ids: bool) -> Sequence[Promise]:
    """P6: two runs at a time have different user ids on the host, and an empty /dev/shm each."""
    code = (
        "import os, time\n"
        "print(open('/proc/self/uid_map').read().split())\n"
        "print(os.listdir('/dev/shm'), os.listdir('/tmp'))\n"
        "open('/dev/shm/mark', 'w').close(); open('/tmp/mark', 'w').close()\n"
        "time.sleep(0.1)\n"
    )
    outcomes = await asyncio.gather(*(run_once(backend, _plan(python, code)) for _ in range(2)))
    said = [outcome.stdout.data.decode().splitlines() for outcome in outcomes]
    kept = all(len(s) == 2 and s[1] == "[] []" for s in said)
    kept = kept and (not host_ids or said[0][0] != said[1][0])
    ids = "had different user ids and " if host_ids else ""
    evidence = f"two runs at a time {ids}saw nothing of each other"
    return (
        _row(
            "P6",
            "runs do not see each other",
            kept,
            evidence if kept else f"two runs at a time saw {said}",
            "report this: SECURITY.md",
        ),
    )


async def _truth(backend: Backend, python: Language) -> Sequence[Promise]:
    """P5 and P8: exit code 137 is a plain failure, and a link under outputs is not followed."""
    code = (
        "import os, sys\nos.symlink('/etc/passwd', 'outputs/link')\n"
        "open('outputs/file', 'w').write('plain')\nsys.exit(137)\n"
    )
    outcome = await run_once(backend, _plan(python, code))
    plain = [(file.name, file.content) for file in outcome.artifacts] == [("file", b"plain")]
    true = outcome.status is RunStatus.FAILED and outcome.exit_code == 137
    return (
        _row("P5", "files cross as plain bytes", plain, "a link under outputs was left", "report"),
        _row("P8", "statuses are observed facts", true, "exit code 137 is failed", "report"),
    )


Look = Callable[[Backend, Language], Awaitable[Sequence[Promise]]]
LOOKS: dict[str, Look] = {
    "hostile": _hostile,
    "deadline": _deadline,
    "memory": _memory,
    "truth": _truth,
}


async def probe(
    backend: Backend, python: Language | None, *, host_ids: bool = True
) -> Sequence[Promise]:
    """All rows, by promise number; P12 (it fails closed) tells whether every probe ran.

    ``host_ids``: two runs at a time differ in the host's user ids, and can tell. Where the ids
    inside are not the host's (a kernel of its own, an engine's container) they cannot.
    """
    if python is None:
        return [_row("P12", CLOSED, False, "the probes need Python", "make up")]
    rows: list[Promise] = []
    failed: list[str] = []
    neighbours = partial(_neighbours, host_ids=host_ids)
    looks: Sequence[tuple[str, Look]] = [*LOOKS.items(), ("neighbours", neighbours)]
    for name, look in looks:
        try:
            rows += await look(backend, python)
        except (SandboxUnavailable, ValueError, KeyError, TypeError) as error:
            failed.append(f"{name}: {error}")
    evidence = "; ".join(failed) or "every probe ran in a real sandbox"
    rows.append(_row("P12", CLOSED, not failed, evidence, "see the service's log"))
    return sorted(rows, key=lambda row: int(row.id[1:]))


async def language_status(
    backend: Backend, language: Language, *, install: str = ""
) -> LanguageStatus:
    """Version and packages of a language, asked of its interpreter inside a sandbox.

    ``install`` is what brings the language where that is not ``language.install``.
    """
    found = LanguageStatus(
        id=language.id,
        name=language.name,
        file_name=language.source,
        available=False,
        aliases=language.aliases,
    )
    try:
        outcome = await run_once(backend, _command(language, language.version))
        version = _VERSION.search(outcome.stdout.data)
        if outcome.status is not RunStatus.SUCCEEDED or version is None:
            raise SandboxUnavailable("it does not tell its version", step="version")
        packages = await _packages(backend, language)
    except SandboxUnavailable as error:
        reason = f"not usable ({error.message}); where it is missing: {install or language.install}"
        return replace(found, reason=reason)
    return replace(found, available=True, version=version[0].decode(), packages=packages)


async def _packages(backend: Backend, language: Language) -> tuple[str, ...]:
    if not language.packages:
        return ()
    outcome = await run_once(backend, _command(language, language.packages))
    return tuple(outcome.stdout.data.decode("utf-8", "replace").split())


def _command(language: Language, argv: Sequence[str]) -> Plan:
    """A plan that runs one command of a language with its own environment."""
    plan = make_plan(RunRequest(language.id, "", limits=PACKAGES_LIMITS), language, inputs=[])
    return replace(plan, steps=(Step(Phase.RUN, tuple(argv)),), warm=False)
