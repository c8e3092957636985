"""Whether programs can be run here, now: told from programs that were run, not from hope.

At start every language that the backend has found runs its probe program, which must print
``ok``; one that does not is unavailable, with the reason. Afterwards the answer stands until
the machinery fails a run (:meth:`Examiner.doubt`): then the next question runs a probe again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from code_executor.errors import HostUnfit, ServiceError
from code_executor.languages import Language
from code_executor.model import LanguageStatus, Outcome, Promise, RunRequest
from code_executor.plan import make_plan
from code_executor.ports import Backend
from code_executor.worker import Worker

TENANT = ""
"""The probes' tenant in the queue; no key has it."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """The answer: ``reason`` says why not, ``promises`` what this host keeps."""

    ok: bool
    reason: str | None
    promises: Sequence[Promise]
    backend: str


class Examiner:
    """Runs the probes and remembers what they said."""

    def __init__(
        self,
        backend: Backend,
        worker: Worker,
        languages: Sequence[Language],
        *,
        waived: Collection[str] = (),
    ) -> None:
        self._backend = backend
        self._waived = frozenset(waived)
        self._worker = worker
        self._known = {language.id: language for language in languages}
        self._statuses: tuple[LanguageStatus, ...] = ()
        self._promises: tuple[Promise, ...] = ()
        self._reason: str | None = "The service is starting."
        self._doubted = False
        self._once = asyncio.Lock()

    async def start(self) -> None:
        """Probe the host and every language; stop where a promise is broken.

        Raises:
            HostUnfit: a promise is not kept, and not waived by name.
            SandboxUnavailable: the backend cannot make a sandbox.
        """
        await self.examine()
        refuse_broken(self._promises)

    async def examine(self) -> None:
        """Probe the host and every language, and judge nothing.

        Raises:
            SandboxUnavailable: the backend cannot make a sandbox.
        """
        self._promises = tuple(map(self._waive, await self._backend.probe()))
        found = await self._backend.languages()
        # One after another: together they could fill the queue, and be refused by it.
        self._statuses = tuple([await self._examine(status) for status in found])
        self._reason = None if any(s.available for s in self._statuses) else self._why_none()

    def promises(self) -> Sequence[Promise]:
        """What this host keeps, as the probes found it."""
        return self._promises

    def languages(self) -> Sequence[LanguageStatus]:
        """Every language as the probes found it."""
        return self._statuses

    def status(self, language_id: str) -> LanguageStatus | None:
        """One language as the probes found it."""
        return next((status for status in self._statuses if status.id == language_id), None)

    def doubt(self) -> None:
        """The machinery has failed a run: ask a probe before saying yes again."""
        self._doubted = True

    async def ready(self) -> Readiness:
        """The present answer."""
        async with self._once:
            if self._doubted:
                await self._ask_again()
        return Readiness(self._reason is None, self._reason, self._promises, self._backend.name)

    def _waive(self, promise: Promise) -> Promise:
        """Marked as waived if it must be: one that is kept needs no waiving."""
        return replace(promise, waived=not promise.kept and promise.id in self._waived)

    async def _ask_again(self) -> None:
        status = next((s for s in self._statuses if s.available), None)
        if status is None:
            return
        self._reason = await self._try(self._known[status.id])
        self._doubted = self._reason is not None

    async def _examine(self, status: LanguageStatus) -> LanguageStatus:
        if not status.available:
            return status
        reason = await self._try(self._known[status.id])
        return status if reason is None else replace(status, available=False, reason=reason)

    async def _try(self, language: Language) -> str | None:
        """Run the probe program of ``language``; what is wrong, if anything."""
        plan = make_plan(RunRequest(language.id, language.probe), language, inputs=())
        try:
            outcome = await self._worker.execute(plan, tenant=TENANT)
        except ServiceError as exc:
            return f"The probe program of {language.name} could not be run: {exc.message}"
        if outcome.stdout.data.strip() == b"ok":
            return None
        return f"The probe program of {language.name} did not print ok: {_shown(outcome)}"

    def _why_none(self) -> str:
        reasons = [f"{s.id}: {s.reason}" for s in self._statuses] or ["none is configured"]
        return f"No language is available ({'; '.join(reasons)})."


def refuse_broken(promises: Sequence[Promise]) -> None:
    """Stop where a promise is neither kept nor waived.

    Raises:
        HostUnfit: names each such promise; ``fix`` is how to keep the first or waive them.
    """
    broken = [promise for promise in promises if not promise.kept and not promise.waived]
    if not broken:
        return
    what = "; ".join(f"{p.id} ({p.title}): {p.evidence}" for p in broken)
    waive = f"or waive by name: WAIVE_PROMISES={','.join(p.id for p in broken)}"
    fixes = [p.fix for p in broken if p.fix]
    raise HostUnfit(f"This host does not keep {what}", fix="; ".join((*fixes, waive)))


def _shown(outcome: Outcome) -> str:
    """The end of a failed probe in one short line."""
    said = (outcome.stderr.data or outcome.stdout.data).decode(errors="replace").strip()
    return f"{outcome.status}, exit code {outcome.exit_code}: {said[-300:]!r}"
