"""From settings to live objects: the one module that names an adapter.

Everything below takes plain arguments. :func:`build` is the whole service; :func:`run_local`
and :func:`examine` are what the command line needs of it without HTTP, records or objects.
Modules that only one of them needs are imported there, so that ``code-executor run`` does not
wait for a web framework.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from code_executor.builds import Builds
from code_executor.clock import SystemClock
from code_executor.config import BadSettings, Settings
from code_executor.datadir import DataDirectory
from code_executor.errors import HostUnfit
from code_executor.files import ServiceConfig
from code_executor.languages import Language, Warm, load, resolve
from code_executor.model import MIB, LanguageStatus, Outcome, Promise, RunRequest
from code_executor.observe import Metrics, get_logger
from code_executor.plan import choose_flavour, make_plan
from code_executor.pool import Pool
from code_executor.ports import Backend, Records
from code_executor.readiness import Examiner
from code_executor.service import Service
from code_executor.shelf import Size
from code_executor.signing import Signer, parse_signing_keys
from code_executor.worker import Worker

if TYPE_CHECKING:
    from fastapi import FastAPI

    from code_executor.api.config import EdgeConfig
    from code_executor.janitor import Janitor, Sweep
    from code_executor.objects import ObstoreObjects

_log = get_logger("compose")

RUNTIMES = {"opt/python": "python", "opt/go": "go"}
"""Directories of the sandboxes' root, and what of ``RUNTIME_DIR`` is bound there."""

FORKED_MAX = 32
"""Most sandboxes of a flavour that wait where a zygote forks them."""


@dataclass(slots=True)
class Application:
    """The service with all that it stands on; started and closed once."""

    app: FastAPI
    service: Service
    backend: Backend
    pool: Pool
    records: Records
    janitor: Janitor
    languages: Sequence[Language]
    data_dir: DataDirectory
    grace_s: float
    _started: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def start(self) -> None:
        """Start everything from the ground up; what has been started is closed if a step fails.

        Raises:
            HostUnfit: this host lacks something; says what to do.
            SandboxUnavailable: no program can be run.
        """
        async with AsyncExitStack() as stack:
            stack.enter_context(self.data_dir.locked())
            await self.records.start()
            stack.push_async_callback(self.records.close)
            await self.janitor.recover()
            stack.push_async_callback(self.backend.close)
            await self.backend.start()
            stack.push_async_callback(self.pool.close)
            self.pool.start(await self._flavours())
            await self.service.start()
            stack.push_async_callback(self.janitor.stop)
            self.janitor.start()
            self._started = stack.pop_all()

    async def drain(self) -> None:
        """Take no new run; let the present ones finish for the grace time, end the others."""
        await self.service.drain(self.grace_s)

    async def close(self) -> None:
        """End everything, from the top down; idempotent."""
        await self.service.drain(0)
        await self._started.aclose()

    async def _flavours(self) -> Collection[str]:
        """The flavours of the languages that this host has: no others need warm sandboxes."""
        available = {status.id for status in await self.backend.languages() if status.available}
        return [f.name for each in self.languages if each.id in available for f in each.flavours]


def build(settings: Settings) -> Application:
    """The whole service, not started.

    Raises:
        BadSettings: a setting that this version cannot serve.
        HostUnfit: the data directory or the system call filter cannot be used.
    """
    from code_executor.api import create_app
    from code_executor.auth import KeyRing
    from code_executor.janitor import Janitor, Retention

    data_dir = DataDirectory(settings.data_dir)
    languages, clock, metrics = make_languages(settings), SystemClock(), Metrics()
    backend, records = make_backend(settings, languages), make_records(settings, metrics)
    objects, sweeps = make_objects(settings)
    pool = make_pool(settings, backend, languages, on_level=metrics.pool_level)
    service = Service(
        backend=backend,
        worker=make_worker(settings, pool, clock),
        records=records,
        objects=objects,
        languages=languages,
        clock=clock,
        metrics=metrics,
        config=_service_config(settings),
        waived=_waived(settings),
    )
    metrics.runs_in_flight.set_function(lambda: service.active)
    app = create_app(
        service,
        keys=KeyRing.parse(settings.api_keys.get_secret_value()),
        signer=Signer(_signing_keys(settings, data_dir)),
        config=_edge_config(settings),
        metrics=metrics,
        clock=clock,
    )
    retention = Retention(
        runs=_span(settings.run_ttl), claims=timedelta(seconds=settings.idempotency_ttl)
    )
    return Application(
        app=app,
        service=service,
        backend=backend,
        pool=pool,
        records=records,
        janitor=Janitor(records, objects, clock, retention=retention, sweeps=sweeps),
        languages=languages,
        data_dir=data_dir,
        grace_s=settings.shutdown_grace_s,
    )


async def run_local(settings: Settings, request: RunRequest) -> Outcome:
    """Run one program in a sandbox, with neither server nor records.

    Raises:
        HostUnfit, SandboxUnavailable: it cannot be run here.
        KeyError: no such language.
    """
    language = next(each for each in make_languages(settings) if each.id == request.language)
    # Only what this program needs is started: one interpreter, not those of every flavour.
    language = replace(language, flavours=(choose_flavour(request.code, language),))
    inputs = [file.content or b"" for file in request.files]
    plan = make_plan(request, language, inputs=inputs)
    async with _running(make_backend(settings, [language])) as backend:
        sandbox = await backend.prepare(plan.flavour)
        try:
            return await sandbox.run(plan)
        finally:
            await sandbox.destroy()


@dataclass(frozen=True, slots=True)
class Report:
    """What ``check`` found: ``problem`` when the backend did not even start."""

    promises: Sequence[Promise] = ()
    languages: Sequence[LanguageStatus] = ()
    problem: HostUnfit | None = None
    conformance: Sequence[tuple[str, str, str | None]] = ()
    """Of each conformance check: its promise, its title, and what went wrong."""

    @property
    def ok(self) -> bool:
        """Whether every promise is kept or waived, and a program can be run."""
        return (
            self.problem is None
            and all(promise.kept or promise.waived for promise in self.promises)
            and any(language.available for language in self.languages)
            and all(failure is None for _, _, failure in self.conformance)
        )


async def examine(settings: Settings, *, full: bool = False) -> Report:
    """Try this host: the hostile probes and each language's probe; ``full``: conformance too.

    Raises:
        SandboxUnavailable: the backend starts but cannot make a sandbox.
    """
    languages = make_languages(settings)
    try:
        async with _running(make_backend(settings, languages)) as backend:
            pool = Pool(backend, {f.name: Size(0, 0) for each in languages for f in each.flavours})
            worker = make_worker(settings, pool, SystemClock())
            examiner = Examiner(backend, worker, languages, waived=_waived(settings))
            try:
                await examiner.examine()
                conformance = await _conformance(backend) if full else ()
            finally:
                await pool.close()
            return Report(examiner.promises(), examiner.languages(), conformance=conformance)
    except HostUnfit as problem:
        return Report(problem=problem)


async def _conformance(backend: Backend) -> Sequence[tuple[str, str, str | None]]:
    """A failure that the backend is declared to differ in is told in the title, not as one."""
    from code_executor.sandbox.conformance import run_all
    from code_executor.sandbox.differs import reasons

    differs, found = reasons(backend.name), []
    for result in await run_all(backend):
        check = result.check
        if result.passed or result.skipped is not None:
            failure, title = None, check.title
        elif check.name in differs:
            failure, title = None, f"{check.title} (differs: {differs[check.name]})"
        else:
            failure, title = result.message, check.title
        if result.skipped is None:
            found.append((check.promise, title, failure))
    return found


@asynccontextmanager
async def _running(backend: Backend) -> AsyncIterator[Backend]:
    try:
        await backend.start()
        yield backend
    finally:
        await backend.close()


def _waived(settings: Settings) -> tuple[str, ...]:
    """The promises that need not be kept; a switched-off filter waives the first."""
    off = settings.sandbox_backend == "docker" and settings.disable_sandbox_security
    return (*settings.waive_promises, "P1") if off else settings.waive_promises


def make_languages(settings: Settings) -> tuple[Language, ...]:
    """The languages, with the interpreters that sandboxes will find.

    Raises:
        BadSettings: a file of ``LANGUAGES_DIR`` is malformed.
    """
    try:
        known = load(settings.languages_dir)
    except (OSError, ValueError) as exc:
        raise BadSettings(f"LANGUAGES_DIR: {exc}") from None
    if settings.sandbox_backend == "docker":
        return resolve(known, lambda _: False)  # the host's interpreters say nothing of an image
    return resolve(known, lambda path: _on_host(settings.runtime_dir, path).exists())


def _on_host(runtime_dir: Path, path: str) -> Path:
    """Where the host has what a sandbox sees as ``path``."""
    for inside, name in RUNTIMES.items():
        if path.startswith(f"/{inside}/"):
            return runtime_dir / name / path.removeprefix(f"/{inside}/")
    return Path(path)


def make_backend(settings: Settings, languages: Sequence[Language]) -> Backend:
    """The backend that ``SANDBOX_BACKEND`` names."""
    if settings.sandbox_backend == "fake":
        from code_executor.sandbox.fake import FakeBackend

        _log.warning("the fake backend runs nothing: every program prints ok")
        return FakeBackend(languages=languages)
    from code_executor.sandbox import seccomp
    from code_executor.sandbox.native import NativeBackend

    if settings.sandbox_backend == "docker":
        return _docker(settings, languages)
    runtimes = settings.runtime_dir.absolute()
    if settings.sandbox_backend in {"gvisor", "runc"}:
        from code_executor.sandbox.oci import OciBackend
        from code_executor.sandbox.oci_bundle import RuntimeKind

        return OciBackend(
            RuntimeKind(settings.sandbox_backend),
            languages=languages,
            mounts={inside: runtimes / name for inside, name in RUNTIMES.items()},
            seccomp_profile=settings.seccomp_profile or seccomp.default_path(),
            default_memory_mb=settings.default_memory_mb,
            scratch_mb=settings.max_memory_mb,
        )
    return NativeBackend(
        languages=languages,
        mounts={inside: runtimes / name for inside, name in RUNTIMES.items()},
        seccomp_profile=settings.seccomp_profile or seccomp.default_path(),
        workdir=settings.workdir(),
        default_memory_mb=settings.default_memory_mb,
        scratch_mb=settings.max_memory_mb,
    )


def _docker(settings: Settings, languages: Sequence[Language]) -> Backend:
    """Imported only when it is asked for: the client of the engine is the slowest import here."""
    from code_executor.sandbox import seccomp
    from code_executor.sandbox.docker import DockerBackend

    return DockerBackend(
        languages=languages,
        images=settings.runner_images(),
        seccomp_profile=settings.seccomp_profile or seccomp.default_path(),
        workdir=settings.workdir(),
        engine=settings.docker_host,
        host_workdir=settings.host_sandbox_dir,
        apparmor=settings.apparmor_profile,
        default_memory_mb=settings.default_memory_mb,
        scratch_mb=settings.max_memory_mb,
        waived=settings.disable_sandbox_security,
    )


def make_pool(
    settings: Settings,
    backend: Backend,
    languages: Sequence[Language],
    *,
    on_level: Callable[[Mapping[str, int]], None],
) -> Pool:
    """A pool of every flavour; their floors together are within ``WARM_POOL_MAX``.

    What is forked needs no large stock: one made on demand costs a taker two milliseconds.
    """
    flavours = [flavour for language in languages for flavour in language.flavours]
    floor = min(settings.warm_pool, settings.warm_pool_max // max(1, len(flavours)))
    cap = settings.warm_pool_max if settings.warm_pool else 0
    forks = settings.sandbox_backend == "native"
    sizes = {
        flavour.name: Size(
            floor,
            min(cap, max(floor, FORKED_MAX)) if forks and flavour.warm is Warm.ZYGOTE else cap,
        )
        for flavour in flavours
    }
    return Pool(
        backend,
        sizes,
        budget=settings.warm_pool_max,
        budget_bytes=settings.warm_pool_mb * MIB,
        on_level=on_level,
    )


def make_worker(settings: Settings, pool: Pool, clock: SystemClock) -> Worker:
    """A worker with the admission that the settings say."""
    return Worker(
        pool,
        clock,
        max_concurrency=settings.max_concurrency,
        queue_limit=settings.queue_limit,
        builds=Builds(settings.build_cache_mb * MIB),
    )


def make_records(settings: Settings, metrics: Metrics) -> Records:
    """The records that ``DATABASE_URL`` names.

    Raises:
        BadSettings: this version has no engine for it.
    """
    from code_executor.store import SqliteRecords

    url = settings.records_url()
    if not url.startswith("sqlite:///"):
        raise BadSettings("DATABASE_URL: this version keeps records in sqlite:///PATH only")
    return SqliteRecords(
        url,
        claim_ttl=timedelta(seconds=settings.idempotency_ttl),
        committed=metrics.records_batch.observe,
    )


def make_objects(settings: Settings) -> tuple[ObstoreObjects, Mapping[str, Sweep]]:
    """The objects that ``STORAGE_URL`` names, and what the janitor sweeps there.

    Raises:
        BadSettings: this version has no store for it, or the directory cannot be made.
    """
    from code_executor.objects import local_objects

    parts = urlsplit(settings.objects_url())
    if parts.scheme != "file" or parts.netloc:
        raise BadSettings("STORAGE_URL: this version keeps files in file:///PATH only")
    try:
        objects, sweep = local_objects(Path(url2pathname(parts.path)))
    except OSError as exc:
        raise BadSettings(f"STORAGE_URL: {exc}") from None
    return objects, {"parts": sweep}


def _signing_keys(settings: Settings, data_dir: DataDirectory) -> list[bytes]:
    """The keys of ``SIGNING_KEY``, or the data directory's own."""
    given = settings.signing_key.get_secret_value()
    return parse_signing_keys(given) if given else data_dir.signing_keys()


def _service_config(settings: Settings) -> ServiceConfig:
    return ServiceConfig(
        artifact_ttl=_span(settings.file_ttl),
        idempotency_ttl=timedelta(seconds=settings.idempotency_ttl),
        max_file_bytes=settings.max_file_bytes,
        max_files_bytes=settings.max_files_bytes,
    )


def _edge_config(settings: Settings) -> EdgeConfig:
    from code_executor.api.config import EdgeConfig

    return EdgeConfig(
        public_base_url=settings.base_url(),
        cors_origins=settings.cors_origins,
        link_ttl_s=settings.link_ttl,
        defaults=settings.default_limits(),
        maxima=settings.maximum_limits(),
        max_code_bytes=settings.max_code_bytes,
        max_file_bytes=settings.max_file_bytes,
        max_files_bytes=settings.max_files_bytes,
        max_body_bytes=settings.max_body_bytes,
        max_buffered_bytes=settings.max_buffered_bytes,
        body_timeout_s=settings.body_timeout_s,
    )


def _span(seconds: int) -> timedelta | None:
    """0 stands for "until deleted"."""
    return timedelta(seconds=seconds) if seconds else None
