"""The use cases: run programs, keep their records, keep files. Knows no adapter and no setting.

Theory of operation
-------------------
One event loop. A run is one pass down and up: its files are fetched, the request becomes a plan
(pure), the worker executes it, artifacts are stored as objects, then the record and the rows of
its artifacts are committed together, and only then the answer leaves. An object without a row
(a crash between the two) is nobody's, and the janitor's to remove.

Whoever executes is in ``_executing`` meanwhile, so that :meth:`Service.drain` can wait for all and
cancel those that take too long: their runs are recorded as ``killed``. No task is made for it: the
answer is on its way before the loop's next turn, in which the used sandbox is destroyed. A request
with an idempotency key is a task in ``_flights`` from before its first ``await`` until its claim on
the key is committed; the same request again waits there for the first one's answer.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from structlog.contextvars import bind_contextvars, reset_contextvars

from code_executor import lifecycle
from code_executor.errors import (
    Conflict,
    InvalidRequest,
    SandboxUnavailable,
)
from code_executor.files import Files, ServiceConfig, absent, found, new_id
from code_executor.languages import Language, by_name
from code_executor.model import (
    LanguageStatus,
    Outcome,
    Plan,
    Principal,
    Run,
    RunRequest,
    RunStatus,
    StoredFile,
)
from code_executor.observe import get_logger
from code_executor.plan import make_plan
from code_executor.ports import Backend, Clock, Metrics, Objects, Records
from code_executor.readiness import Examiner, Readiness
from code_executor.worker import Worker

_log = get_logger("service")

SHUT_DOWN = "the service was shut down"


class _Flight(NamedTuple):
    """A request with an idempotency key that is being answered."""

    body: str
    answer: asyncio.Task[Run]


class Service:
    """The use cases; ``compose`` builds one, the HTTP edge calls it.

    Every method raises errors of :mod:`code_executor.errors` and, where an engine fails, the
    adapter's own. What belongs to another tenant is :class:`NotFound`, as if absent.
    """

    def __init__(
        self,
        *,
        backend: Backend,
        worker: Worker,
        records: Records,
        objects: Objects,
        languages: Sequence[Language],
        clock: Clock,
        metrics: Metrics,
        config: ServiceConfig | None = None,
        make_id: Callable[[str], str] = new_id,
        waived: Collection[str] = (),
    ) -> None:
        self._worker = worker
        self._records = records
        self._objects = objects
        self._languages = by_name(languages)
        self._clock = clock
        self._metrics = metrics
        self._config = config or ServiceConfig()
        self._make_id = make_id
        self._files = Files(records, objects, clock, self._config, make_id)
        self._examiner = Examiner(backend, worker, languages, waived=waived)
        self._executing: set[asyncio.Task[Any]] = set()
        self._ended: set[asyncio.Task[Any]] = set()  # of those, the ones that drain has cancelled
        self._executed = asyncio.Event()  # set while nobody executes
        self._executed.set()
        self._flights: dict[tuple[str, str], _Flight] = {}
        self._draining = False
        self._ending = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.active = 0

    async def start(self) -> None:
        """Run the probes; afterwards the service is ready.

        Raises:
            HostUnfit: a promise is not kept here.
            SandboxUnavailable: no sandbox can be made.
        """
        await self._examiner.start()

    async def drain(self, grace_s: float) -> None:
        """Take no new run, let the present ones finish for ``grace_s`` seconds, end the rest.

        Returns when the record of every run is committed (but not before its answer is read).
        """
        self._draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._executed.wait()
        self._ending = True
        for task in self._executing - self._ended:
            self._ended.add(task)
            task.cancel()
        await self._idle.wait()

    async def run(
        self,
        principal: Principal,
        request: RunRequest,
        *,
        idempotency: tuple[str, str] | None = None,
    ) -> Run:
        """Run a program to its end and return its record, which is committed by then.

        ``idempotency`` is the caller's key and the SHA-256 of what he sent: the same pair
        answers with the same run, for as long as ``idempotency_ttl`` says.

        Raises:
            InvalidRequest: an unknown or unavailable language, a file that is not there.
            PayloadTooLarge: the files are too large together.
            Conflict: the key was used with another body.
            QueueFull: too many runs wait.
            SandboxUnavailable: the machinery failed; the run is recorded as ``error``.
        """
        if self._draining:
            raise SandboxUnavailable("The service is shutting down.")
        if idempotency is None:
            return await self._run(principal.tenant, request, None)
        return await self._run_once(principal.tenant, request, idempotency)

    async def get_run(self, principal: Principal, run_id: str) -> Run:
        """A run's record.

        Raises:
            NotFound: none of this tenant.
        """
        return found(await self._records.get_run(principal.tenant, run_id), "run")

    async def list_runs(
        self,
        principal: Principal,
        *,
        limit: int,
        after: str | None = None,
        status: RunStatus | None = None,
        language: str | None = None,
    ) -> tuple[Sequence[Run], bool]:
        """Own runs, newest first, and whether more follow."""
        known = self._languages.get(language) if language else None
        return await self._records.list_runs(
            principal.tenant,
            limit=limit,
            after=after,
            status=status,
            language=known.id if known else language,
        )

    async def delete_run(self, principal: Principal, run_id: str) -> None:
        """Forget a finished run and its artifacts.

        Raises:
            NotFound: none of this tenant.
            Conflict: it has not finished.
        """
        run = await self.get_run(principal, run_id)
        if not lifecycle.finished(run.status):
            raise Conflict(f"The run is {run.status}; only a finished one can be deleted.")
        if not await self._records.delete_run(principal.tenant, run_id):
            raise absent("run")

    async def cancel_run(self, principal: Principal, run_id: str) -> Run:
        """End a run. One that has finished is returned as it is.

        Runs are recorded when they have finished (there are no background runs yet), so
        there is none to be found that could still be ended.
        """
        return await self.get_run(principal, run_id)

    async def upload(
        self, principal: Principal, *, name: str, content: bytes, content_type: str, purpose: str
    ) -> StoredFile:
        """See :meth:`Files.upload`."""
        return await self._files.upload(
            principal.tenant,
            name=name,
            content=content,
            content_type=content_type,
            purpose=purpose,
        )

    async def get_file(self, principal: Principal, file_id: str) -> StoredFile:
        """See :meth:`Files.get`."""
        return await self._files.get(principal.tenant, file_id)

    async def list_files(
        self,
        principal: Principal,
        *,
        limit: int,
        after: str | None = None,
        purpose: str | None = None,
    ) -> tuple[Sequence[StoredFile], bool]:
        """Own files, newest first, and whether more follow."""
        return await self._records.list_files(
            principal.tenant, limit=limit, after=after, purpose=purpose
        )

    async def delete_file(self, principal: Principal, file_id: str) -> None:
        """See :meth:`Files.delete`."""
        await self._files.delete(principal.tenant, file_id)

    async def signed_file(self, file_id: str, tenant: str) -> StoredFile:
        """See :meth:`Files.get_signed`."""
        return await self._files.get_signed(file_id, tenant)

    def content(self, file: StoredFile) -> AsyncIterator[bytes]:
        """The bytes of a file, in pieces."""
        return self._objects.stream(file.sha256)

    async def languages(self) -> Sequence[LanguageStatus]:
        """Every language, and whether it is available."""
        return self._examiner.languages()

    def language_ids(self) -> Sequence[str]:
        """The ids of the known languages, sorted."""
        return sorted({language.id for language in self._languages.values()})

    async def ready(self) -> Readiness:
        """Whether programs can be run now."""
        now = await self._examiner.ready()
        if self._draining:
            return Readiness(False, "The service is shutting down.", now.promises, now.backend)
        return now

    async def _run_once(self, tenant: str, request: RunRequest, claim: tuple[str, str]) -> Run:
        """One run for one key, however often and however concurrently it is asked for.

        The work is a task of its own: a first caller who goes away does not take the run from
        the second.
        """
        place = (tenant, claim[0])
        flight = self._flights.get(place)
        if flight is None:
            answer = asyncio.create_task(self._answer_claim(tenant, request, claim))
            flight = self._flights[place] = _Flight(claim[1], answer)
            answer.add_done_callback(lambda done: self._land(place, done))
        if flight.body != claim[1]:
            raise _other_body()
        return await asyncio.shield(flight.answer)

    def _land(self, place: tuple[str, str], answer: asyncio.Task[Run]) -> None:
        del self._flights[place]
        if not answer.cancelled():
            answer.exception()  # seen: nobody may be waiting any more

    async def _answer_claim(self, tenant: str, request: RunRequest, claim: tuple[str, str]) -> Run:
        key, body = claim
        since = self._clock.now() - self._config.idempotency_ttl
        earlier = await self._records.find_idempotent(tenant, key, since=since)
        if earlier is not None:
            if earlier[0] != body:
                raise _other_body()
            run = await self._records.get_run(tenant, earlier[1])
            if run is not None:
                return run
        return await self._run(tenant, request, claim)

    async def _run(self, tenant: str, request: RunRequest, claim: tuple[str, str] | None) -> Run:
        language = self._language(request.language)
        with self._counted():
            inputs = await self._files.fetch(tenant, request.files)
            plan = make_plan(request, language, inputs=inputs)
            run = self._new_run(tenant, request, language)
            bound = bind_contextvars(run_id=run.id)
            try:
                return await self._carry_out(run, plan, claim)
            finally:
                reset_contextvars(**bound)

    async def _carry_out(self, run: Run, plan: Plan, claim: tuple[str, str] | None) -> Run:
        """Execute, store, commit. A run that the machinery fails is on record too."""
        try:
            outcome = await self._execute(run.tenant, plan)
        except SandboxUnavailable as exc:
            self._examiner.doubt()
            now = self._clock.now()
            await self._commit(
                lifecycle.advance(run, RunStatus.ERROR, now=now, reason=exc.message), None
            )
            raise
        now = self._clock.now()
        artifacts = await self._files.keep(run, outcome.artifacts, now)
        return await self._commit(lifecycle.finish(run, outcome, artifacts, now), claim)

    async def _execute(self, tenant: str, plan: Plan) -> Outcome:
        if self._ending:
            return Outcome(RunStatus.KILLED, reason=SHUT_DOWN)
        task = asyncio.current_task()
        assert task is not None
        self._executing.add(task)
        self._executed.clear()
        try:
            return await self._worker.execute(plan, tenant=tenant)
        except asyncio.CancelledError:
            if task not in self._ended or task.uncancel():
                raise  # the caller went away
            return Outcome(RunStatus.KILLED, reason=SHUT_DOWN)
        finally:
            self._ended.discard(task)
            self._executing.discard(task)
            if not self._executing:
                self._executed.set()

    async def _commit(self, run: Run, claim: tuple[str, str] | None) -> Run:
        await self._records.save_run(run, idempotency=claim)
        self._metrics.run_finished(run)
        _log.info(
            "run_finished",
            tenant=run.tenant,
            language=run.language,
            status=run.status.value,
            wall_ms=run.usage.wall_ms,
            cpu_ms=run.usage.cpu_ms,
            queue_ms=run.usage.queue_ms,
            prepare_ms=run.usage.prepare_ms,
        )
        return run

    def _language(self, name: str) -> Language:
        language = self._languages.get(name)
        if language is None:
            raise InvalidRequest(
                f"language {name!r} is not known; there are {', '.join(self.language_ids())}.",
                param="language",
                code="unknown_language",
            )
        status = self._examiner.status(language.id)
        if status is None or not status.available:
            reason = "not found" if status is None else status.reason
            raise InvalidRequest(
                f"language {language.id} is not available here: {reason}",
                param="language",
                code="language_unavailable",
            )
        return language

    def _new_run(self, tenant: str, request: RunRequest, language: Language) -> Run:
        """A run that its caller waits for: it is under way from the beginning."""
        now = self._clock.now()
        return Run(
            id=self._make_id("run"),
            tenant=tenant,
            language=language.id,
            status=RunStatus.RUNNING,
            code_sha256=hashlib.sha256(request.code.encode()).hexdigest(),
            limits=request.limits,
            created_at=now,
            metadata=request.metadata,
            attempts=1,
            started_at=now,
        )

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count a run from its admission to its commit, for :meth:`drain`."""
        self.active += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.active -= 1
            if not self.active:
                self._idle.set()


def _other_body() -> Conflict:
    return Conflict(
        "The Idempotency-Key was used with another request body.", param="Idempotency-Key"
    )
