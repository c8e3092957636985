"""The service: records, tenancy, idempotency, shutdown; on the fake, real records and objects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import pytest

from code_executor.clock import SystemClock
from code_executor.errors import Conflict, InvalidRequest, NotFound, QueueFull, SandboxUnavailable
from code_executor.files import ServiceConfig
from code_executor.languages import load
from code_executor.model import (
    ArtifactFile,
    InputFile,
    Outcome,
    Output,
    Principal,
    Run,
    RunRequest,
    RunStatus,
    Skipped,
    SourceFile,
)
from code_executor.objects import local_objects
from code_executor.pool import Pool
from code_executor.sandbox.fake import FakeBackend, said
from code_executor.service import SHUT_DOWN, Service
from code_executor.shelf import Size
from code_executor.store import SqliteRecords
from code_executor.worker import Worker

LANGUAGES = load()
ALICE, BOB = Principal("alice", 5, 10), Principal("bob", 5, 10)
PROGRAM = RunRequest("python", "print(1)", metadata=(("k", "v"),))


class Counting:
    """Metrics that remember what was reported."""

    def __init__(self) -> None:
        self.finished: list[Run] = []

    def run_finished(self, run: Run) -> None:
        self.finished.append(run)

    def pool_level(self, levels: Mapping[str, int]) -> None:
        """Not counted here."""


@asynccontextmanager
async def serving(
    tmp_path: Path, backend: FakeBackend, *, concurrency: int = 8, queue: int = 20
) -> AsyncIterator[Service]:
    async with AsyncExitStack() as stack:
        records = SqliteRecords(f"sqlite:///{tmp_path / 'records.db'}")
        await records.start()
        stack.push_async_callback(records.close)
        pool = Pool(backend, {f.name: Size(0, 0) for each in LANGUAGES for f in each.flavours})
        stack.push_async_callback(pool.close)
        clock = SystemClock()
        service = Service(
            backend=backend,
            worker=Worker(pool, clock, max_concurrency=concurrency, queue_limit=queue),
            records=records,
            objects=local_objects(tmp_path / "objects")[0],
            languages=LANGUAGES,
            clock=clock,
            metrics=Counting(),
            config=ServiceConfig(artifact_ttl=timedelta(hours=1)),
        )
        await service.start()
        backend.plans.clear()
        yield service
        await asyncio.wait_for(service.drain(0), 5)


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend({"print(1)": said("1\n")}, languages=LANGUAGES)


@pytest.fixture
async def service(tmp_path: Path, backend: FakeBackend) -> AsyncIterator[Service]:
    async with serving(tmp_path, backend) as service:
        yield service


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.002)


# Runs


async def test_a_run_is_on_record_when_it_is_answered(service: Service) -> None:
    run = await service.run(ALICE, PROGRAM)
    assert (run.status, run.stdout, run.attempts) == (RunStatus.SUCCEEDED, "1\n", 1)
    assert (run.tenant, run.metadata, run.limits) == ("alice", (("k", "v"),), PROGRAM.limits)
    assert run.code_sha256 == sha256(b"print(1)").hexdigest()
    assert run.started_at is not None
    assert run.finished_at is not None
    assert run.created_at <= run.started_at <= run.finished_at
    assert await service.get_run(ALICE, run.id) == run


async def test_every_finished_run_is_counted(service: Service) -> None:
    run = await service.run(ALICE, PROGRAM)
    metrics = service._metrics
    assert isinstance(metrics, Counting)
    assert metrics.finished == [run]
    assert service.active == 0


async def test_an_alias_stands_for_its_language(service: Service, backend: FakeBackend) -> None:
    assert (await service.run(ALICE, replace(PROGRAM, language="py"))).language == "python"
    assert backend.plans[0].language == "python"
    runs, _ = await service.list_runs(ALICE, limit=10, language="py")
    assert len(runs) == 1


async def test_an_unknown_language_lists_what_there_is(service: Service) -> None:
    with pytest.raises(InvalidRequest, match="go, node, php, python, ruby") as caught:
        await service.run(ALICE, replace(PROGRAM, language="cobol"))
    assert (caught.value.param, caught.value.code) == ("language", "unknown_language")
    assert service.language_ids() == ["go", "node", "php", "python", "ruby"]


async def test_an_unavailable_language_says_why(tmp_path: Path) -> None:
    probe = next(each.probe for each in LANGUAGES if each.id == "go")
    backend = FakeBackend({probe: said(stderr="no index", exit_code=1)}, languages=LANGUAGES)
    async with serving(tmp_path, backend) as service:
        with pytest.raises(InvalidRequest, match="no index") as caught:
            await service.run(ALICE, replace(PROGRAM, language="go"))
        assert caught.value.code == "language_unavailable"


async def test_output_that_is_not_utf8_is_shown_and_marked(tmp_path: Path) -> None:
    outcome = Outcome(
        RunStatus.OOM,
        stdout=Output(b"\xff\x00", 9, truncated=True),
        skipped=(Skipped("big", "too large", 7),),
    )
    async with serving(tmp_path, FakeBackend({"x": outcome}, languages=LANGUAGES)) as service:
        run = await service.run(ALICE, replace(PROGRAM, code="x"))
        assert (run.stdout, run.stdout_truncated) == ("\ufffd\x00", True)
        assert (run.status, run.skipped) == (RunStatus.OOM, outcome.skipped)
        assert await service.get_run(ALICE, run.id) == run


async def test_artifacts_are_files_of_the_tenant(tmp_path: Path) -> None:
    left = (ArtifactFile("a/plot.png", b"png"), ArtifactFile("copy.png", b"png"))
    outcome = Outcome(RunStatus.SUCCEEDED, exit_code=0, artifacts=left)
    async with serving(tmp_path, FakeBackend({"x": outcome}, languages=LANGUAGES)) as service:
        run = await service.run(ALICE, replace(PROGRAM, code="x"))
        assert [(file.name, file.size) for file in run.artifacts] == [
            ("a/plot.png", 3),
            ("copy.png", 3),
        ]
        for file in run.artifacts:
            assert await service.get_file(ALICE, file.id) == file
            assert [piece async for piece in service.content(file)] == [b"png"]
            with pytest.raises(NotFound):
                await service.get_file(BOB, file.id)
        assert (await service.get_run(ALICE, run.id)).artifacts == run.artifacts


async def test_uploads_and_sources_reach_the_plan(service: Service, backend: FakeBackend) -> None:
    file = await service.upload(
        ALICE, name="d", content=b"data", content_type="text/csv", purpose="user_data"
    )
    request = replace(
        PROGRAM,
        files=(InputFile("d.csv", file_id=file.id), InputFile("i", content=b"inline")),
        sources=(SourceFile("m.py", b"x"),),
    )
    await service.run(ALICE, request)
    staged = {each.path: each.content for each in backend.plans[0].files}
    assert (staged["inputs/d.csv"], staged["inputs/i"], staged["m.py"]) == (
        b"data",
        b"inline",
        b"x",
    )
    with pytest.raises(InvalidRequest, match="no such file"):
        await service.run(BOB, request)


async def test_a_refused_request_leaves_no_record(service: Service, backend: FakeBackend) -> None:
    with pytest.raises(InvalidRequest):
        await service.run(ALICE, replace(PROGRAM, sources=(SourceFile("main.py", b""),)))
    assert await service.list_runs(ALICE, limit=10) == ([], False)
    assert (backend.plans, service.active) == ([], 0)


async def test_a_failure_of_the_machinery_is_on_record_as_error(
    service: Service, backend: FakeBackend
) -> None:
    backend.run_failures.append(SandboxUnavailable("It broke.", step="frames"))
    with pytest.raises(SandboxUnavailable):
        await service.run(ALICE, PROGRAM)
    ((run,), _) = await service.list_runs(ALICE, limit=10)
    assert (run.status, run.reason) == (RunStatus.ERROR, "It broke. (step: frames)")
    backend.prepare_failures.extend(SandboxUnavailable("no", step="clone") for _ in range(2))
    assert not (await service.ready()).ok


async def test_a_full_queue_is_refused_without_a_record(tmp_path: Path) -> None:
    backend = FakeBackend(languages=LANGUAGES)
    async with serving(tmp_path, backend, concurrency=1, queue=5) as service:
        backend.run_s = 0.02
        answers = await asyncio.gather(
            *(service.run(ALICE, PROGRAM) for _ in range(8)), return_exceptions=True
        )
        assert sum(isinstance(answer, QueueFull) for answer in answers) == 2
        runs, _ = await service.list_runs(ALICE, limit=10)
        assert len(runs) == 6


# Tenancy


async def test_a_run_of_another_tenant_is_as_one_that_never_was(service: Service) -> None:
    run = await service.run(ALICE, PROGRAM)
    messages = set()
    for run_id in (run.id, "run_none"):
        for ask in (service.get_run, service.delete_run, service.cancel_run):
            with pytest.raises(NotFound) as caught:
                await ask(BOB, run_id)
            messages.add(caught.value.message)
    assert len(messages) == 1
    assert await service.list_runs(BOB, limit=10) == ([], False)


async def test_a_deleted_run_is_gone(service: Service) -> None:
    run = await service.run(ALICE, PROGRAM)
    await service.delete_run(ALICE, run.id)
    with pytest.raises(NotFound):
        await service.get_run(ALICE, run.id)


async def test_cancelling_a_finished_run_returns_it(service: Service) -> None:
    run = await service.run(ALICE, PROGRAM)
    assert await service.cancel_run(ALICE, run.id) == run


async def test_a_signed_file_is_for_the_tenant_of_the_link(service: Service) -> None:
    file = await service.upload(ALICE, name="d", content=b"", content_type="x/y", purpose="p")
    assert await service.signed_file(file.id, "alice") == file
    with pytest.raises(NotFound):
        await service.signed_file(file.id, "bob")
    assert await service.list_files(ALICE, limit=10) == ([file], False)
    await service.delete_file(ALICE, file.id)
    with pytest.raises(NotFound):
        await service.signed_file(file.id, "alice")


# Idempotency


async def test_the_same_key_and_body_answer_with_the_same_run(
    service: Service, backend: FakeBackend
) -> None:
    first = await service.run(ALICE, PROGRAM, idempotency=("key", "body"))
    assert await service.run(ALICE, PROGRAM, idempotency=("key", "body")) == first
    assert len(backend.plans) == 1


async def test_asked_at_the_same_time_the_second_waits_for_the_first(
    service: Service, backend: FakeBackend
) -> None:
    backend.run_s = 0.02
    runs = await asyncio.gather(
        *(service.run(ALICE, PROGRAM, idempotency=("key", "body")) for _ in range(5))
    )
    assert len({run.id for run in runs}) == 1
    assert len(backend.plans) == 1


async def test_the_same_key_with_another_body_is_a_conflict(
    service: Service, backend: FakeBackend
) -> None:
    backend.run_s = 0.02
    first = asyncio.create_task(service.run(ALICE, PROGRAM, idempotency=("key", "body")))
    await until(lambda: backend.running == 1)
    with pytest.raises(Conflict):  # while the first is on its way
        await service.run(ALICE, PROGRAM, idempotency=("key", "other"))
    await first
    with pytest.raises(Conflict):  # and when it has been answered
        await service.run(ALICE, PROGRAM, idempotency=("key", "other"))


async def test_keys_of_different_tenants_are_different(service: Service) -> None:
    first = await service.run(ALICE, PROGRAM, idempotency=("key", "body"))
    second = await service.run(BOB, PROGRAM, idempotency=("key", "other"))
    assert first.id != second.id


async def test_a_run_that_the_machinery_failed_does_not_use_the_key_up(
    service: Service, backend: FakeBackend
) -> None:
    backend.run_failures.append(SandboxUnavailable("It broke.", step="frames"))
    with pytest.raises(SandboxUnavailable):
        await service.run(ALICE, PROGRAM, idempotency=("key", "body"))
    run = await service.run(ALICE, PROGRAM, idempotency=("key", "body"))
    assert run.status is RunStatus.SUCCEEDED


async def test_a_first_caller_who_goes_away_leaves_the_run_to_the_second(
    service: Service, backend: FakeBackend
) -> None:
    backend.run_s = 0.02
    first = asyncio.create_task(service.run(ALICE, PROGRAM, idempotency=("key", "body")))
    second = asyncio.create_task(service.run(ALICE, PROGRAM, idempotency=("key", "body")))
    await until(lambda: backend.running == 1)
    first.cancel()
    assert (await second).status is RunStatus.SUCCEEDED


async def test_a_deleted_run_frees_its_key(service: Service) -> None:
    first = await service.run(ALICE, PROGRAM, idempotency=("key", "body"))
    await service.delete_run(ALICE, first.id)
    second = await service.run(ALICE, PROGRAM, idempotency=("key", "body"))
    assert second.id != first.id


# The end


async def test_draining_lets_programs_finish_and_takes_no_new_ones(
    service: Service, backend: FakeBackend
) -> None:
    backend.run_s = 0.03
    running = asyncio.create_task(service.run(ALICE, PROGRAM))
    await until(lambda: backend.running == 1)
    draining = asyncio.create_task(service.drain(5))
    await asyncio.sleep(0)
    with pytest.raises(SandboxUnavailable, match="shutting down"):
        await service.run(ALICE, PROGRAM)
    assert not (await service.ready()).ok
    await draining
    run = await running
    assert run.status is RunStatus.SUCCEEDED
    assert await service.get_run(ALICE, run.id) == run


async def test_what_does_not_finish_in_time_is_ended_and_on_record(
    service: Service, backend: FakeBackend
) -> None:
    backend.run_s = 60
    runs = [
        asyncio.create_task(service.run(ALICE, PROGRAM)),
        asyncio.create_task(service.run(BOB, PROGRAM, idempotency=("key", "body"))),
    ]
    await until(lambda: backend.running == 2)
    await asyncio.wait_for(service.drain(0.01), 5)
    assert service.active == 0
    for run in await asyncio.gather(*runs):
        assert (run.status, run.reason) == (RunStatus.KILLED, SHUT_DOWN)
        assert await service.get_run(Principal(run.tenant, 1, 1), run.id) == run


async def test_ending_twice_is_ending_once(service: Service, backend: FakeBackend) -> None:
    backend.run_s = 60
    running = asyncio.create_task(service.run(ALICE, PROGRAM))
    await until(lambda: backend.running == 1)
    await asyncio.wait_for(asyncio.gather(service.drain(0), service.drain(0)), 5)
    run = await running
    assert (run.status, running.cancelling()) == (RunStatus.KILLED, 0)
    assert await service.get_run(ALICE, run.id) == run


async def test_who_is_cancelled_himself_is_not_answered_for_the_end_of_the_service(
    service: Service, backend: FakeBackend
) -> None:
    backend.run_s = 60
    running = asyncio.create_task(service.run(ALICE, PROGRAM))
    await until(lambda: backend.running == 1)
    ending = asyncio.create_task(service.drain(0.01))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.wait_for(ending, 5)


async def test_a_caller_who_goes_away_ends_the_program(
    service: Service, backend: FakeBackend
) -> None:
    backend.run_s = 60
    caller = asyncio.create_task(service.run(ALICE, PROGRAM))
    await until(lambda: backend.running == 1)
    caller.cancel()
    await until(lambda: backend.running == 0)
    await until(lambda: not backend.live)
    assert service.active == 0


async def test_it_is_ready_until_it_drains(service: Service) -> None:
    assert (await service.ready()).ok
    assert all(status.available for status in await service.languages())
