"""A backend in memory, scripted: for tests of everything above the sandbox, yours included.

It isolates nothing because it runs nothing: a plan is answered by a script, a callable from
:class:`Plan` to :class:`Outcome`, or a mapping from a program's code to one (what it does not
hold prints ``ok``). Delays and failures are set as plain attributes, and what was made and
destroyed can be counted::

    backend = FakeBackend({"print(1)": said("1\\n")})
    backend.prepare_failures.append(SandboxUnavailable("no memory", step="clone"))
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from code_executor.errors import SandboxUnavailable
from code_executor.languages import Language
from code_executor.model import LanguageStatus, Outcome, Output, Plan, Promise, RunStatus, Usage
from code_executor.ports import Haste

Script = Callable[[Plan], Outcome]


def said(stdout: str = "", *, stderr: str = "", exit_code: int = 0) -> Outcome:
    """The outcome of a program that prints and exits."""
    out, err = stdout.encode(), stderr.encode()
    return Outcome(
        status=RunStatus.SUCCEEDED if exit_code == 0 else RunStatus.FAILED,
        exit_code=exit_code,
        stdout=Output(out, len(out)),
        stderr=Output(err, len(err)),
        usage=Usage(wall_ms=1, cpu_ms=1, max_rss_mb=1, output_bytes=len(out) + len(err)),
    )


def always_ok(_plan: Plan) -> Outcome:
    """The script of a fake that was given none: every program prints ``ok``."""
    return said("ok\n")


class FakeSandbox:
    """What :meth:`FakeBackend.prepare` makes; ``dead`` makes :meth:`alive` say no."""

    def __init__(self, backend: FakeBackend, flavour: str) -> None:
        self._backend = backend
        self._flavour = flavour
        self._used = False
        self.dead = False

    @property
    def flavour(self) -> str:
        return self._flavour

    def alive(self) -> bool:
        return not self.dead

    def memory_bytes(self) -> int:
        return self._backend.sandbox_bytes

    async def run(self, plan: Plan) -> Outcome:
        if self._used or self.dead:
            raise SandboxUnavailable("The sandbox cannot take a run.", step="start")
        self._used = True
        return await self._backend.answer(plan)

    async def destroy(self) -> None:
        await asyncio.sleep(self._backend.destroy_s)
        self.dead = True
        self._backend.live.discard(self)


class FakeBackend:
    """The fake. ``prepare_s``, ``run_s`` and ``destroy_s`` are delays in seconds.

    ``prepare_failures`` and ``run_failures`` are raised in order, one a call, before
    anything else happens. ``live`` holds the sandboxes that exist, ``prepared`` counts
    those ever made, ``hastes`` what each preparation was told of its haste, ``plans``
    lists what was run, ``most_running`` how many at once, ``sandbox_bytes`` is what each
    says it has taken of memory.
    """

    name = "fake"

    def __init__(
        self,
        script: Script | Mapping[str, Outcome] | None = None,
        *,
        languages: Sequence[Language] = (),
        promises: Sequence[Promise] = (),
        prepare_s: float = 0.0,
        run_s: float = 0.0,
        destroy_s: float = 0.0,
    ) -> None:
        self._script = always_ok if script is None else _as_script(script)
        self._languages = tuple(map(_status, languages))
        self._promises = tuple(promises)
        self.prepare_s = prepare_s
        self.run_s = run_s
        self.destroy_s = destroy_s
        self.prepare_failures: deque[Exception] = deque()
        self.run_failures: deque[Exception] = deque()
        self.sandbox_bytes = 0
        self.live: set[FakeSandbox] = set()
        self.prepared = 0
        self.hastes: list[Haste] = []
        self.plans: list[Plan] = []
        self.running = 0
        self.most_running = 0

    async def start(self) -> None:
        """Nothing to make ready."""

    async def probe(self) -> Sequence[Promise]:
        """The promises given to the constructor."""
        return self._promises

    async def prepare(self, flavour: str, haste: Haste | None = None) -> FakeSandbox:
        """A sandbox after ``prepare_s``, or the next of ``prepare_failures``."""
        self.hastes.append(haste or Haste())
        if self.prepare_failures:
            raise self.prepare_failures.popleft()
        await asyncio.sleep(self.prepare_s)
        sandbox = FakeSandbox(self, flavour)
        self.live.add(sandbox)
        self.prepared += 1
        return sandbox

    async def languages(self) -> Sequence[LanguageStatus]:
        """Every language of the constructor, available."""
        return self._languages

    async def close(self) -> None:
        """Forget the sandboxes."""
        self.live.clear()

    async def answer(self, plan: Plan) -> Outcome:
        """The script's answer to ``plan`` after ``run_s``, or the next of ``run_failures``."""
        if self.run_failures:
            raise self.run_failures.popleft()
        self.plans.append(plan)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(self.run_s)
            return self._script(plan)
        finally:
            self.running -= 1


def _as_script(script: Script | Mapping[str, Outcome]) -> Script:
    if not isinstance(script, Mapping):
        return script
    return lambda plan: script.get(plan.files[0].content.decode()) or always_ok(plan)


def _status(language: Language) -> LanguageStatus:
    return LanguageStatus(
        id=language.id,
        name=language.name,
        file_name=language.source,
        available=True,
        version="0",
        aliases=language.aliases,
    )
