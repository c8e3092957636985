"""Readiness is told from programs that ran."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from code_executor.clock import SystemClock
from code_executor.errors import HostUnfit, SandboxUnavailable
from code_executor.languages import load
from code_executor.model import LanguageStatus, Promise
from code_executor.pool import Pool
from code_executor.readiness import Examiner, refuse_broken
from code_executor.sandbox.fake import FakeBackend, said
from code_executor.shelf import Size
from code_executor.worker import Worker

LANGUAGES = load()
GO_PROBE = next(language.probe for language in LANGUAGES if language.id == "go")
KEPT = Promise("P1", "no network", True, "refused")
BROKEN = Promise("P4", "memory is bounded", False, "no cgroup", fix="mount it")


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(languages=LANGUAGES, promises=[KEPT])


@pytest.fixture
def examiner(backend: FakeBackend) -> Examiner:
    return examiner_of(backend)


def examiner_of(
    backend: FakeBackend, *, waived: Sequence[str] = (), capacity: int = 4, queue_limit: int = 100
) -> Examiner:
    pool = Pool(backend, {f.name: Size(0, 0) for each in LANGUAGES for f in each.flavours})
    worker = Worker(pool, SystemClock(), max_concurrency=capacity, queue_limit=queue_limit)
    return Examiner(backend, worker, LANGUAGES, waived=waived)


async def test_it_is_not_ready_before_the_start(examiner: Examiner) -> None:
    assert (await examiner.ready()).reason == "The service is starting."


async def test_every_language_has_run_its_probe(examiner: Examiner, backend: FakeBackend) -> None:
    await examiner.start()
    now = await examiner.ready()
    assert (now.ok, now.reason, now.backend, now.promises) == (True, None, "fake", (KEPT,))
    assert {plan.language for plan in backend.plans} == {each.id for each in LANGUAGES}


async def test_a_short_queue_refuses_no_probe(backend: FakeBackend) -> None:
    examiner = examiner_of(backend, capacity=1, queue_limit=1)
    await examiner.start()
    assert [status.id for status in examiner.languages() if not status.available] == []


async def test_a_language_whose_probe_fails_is_unavailable_with_the_reason() -> None:
    backend = FakeBackend({GO_PROBE: said("", stderr="no index", exit_code=1)}, languages=LANGUAGES)
    examiner = examiner_of(backend)
    await examiner.start()
    status = examiner.status("go")
    assert status is not None
    assert not status.available
    assert "no index" in (status.reason or "")
    assert (await examiner.ready()).ok


async def test_a_language_that_the_backend_lacks_is_not_tried(
    examiner: Examiner, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses = [replace(s, available=False, reason="absent") for s in await backend.languages()]

    async def languages() -> Sequence[LanguageStatus]:
        return statuses

    monkeypatch.setattr(backend, "languages", languages)
    await examiner.start()
    assert not backend.plans
    now = await examiner.ready()
    assert not now.ok
    assert "python: absent" in (now.reason or "")


async def test_a_failure_of_the_machinery_is_asked_about_once(
    examiner: Examiner, backend: FakeBackend
) -> None:
    await examiner.start()
    ran = len(backend.plans)
    await examiner.ready()
    assert len(backend.plans) == ran
    examiner.doubt()
    assert (await examiner.ready()).ok
    assert (await examiner.ready()).ok
    assert len(backend.plans) == ran + 1


async def test_it_is_not_ready_while_programs_cannot_be_run(
    examiner: Examiner, backend: FakeBackend
) -> None:
    await examiner.start()
    examiner.doubt()
    backend.prepare_failures.extend(SandboxUnavailable("no", step="clone") for _ in range(2))
    now = await examiner.ready()
    assert not now.ok
    assert "could not be run" in (now.reason or "")
    assert (await examiner.ready()).ok


async def test_a_broken_promise_stops_the_start() -> None:
    backend = FakeBackend(languages=LANGUAGES, promises=[KEPT, BROKEN])
    with pytest.raises(HostUnfit, match="P4") as caught:
        await examiner_of(backend, waived=["P1"]).start()
    assert "mount it" in caught.value.fix
    assert "WAIVE_PROMISES=P4" in caught.value.fix


async def test_a_waived_one_does_not_and_is_shown() -> None:
    backend = FakeBackend(languages=LANGUAGES, promises=[KEPT, BROKEN])
    examiner = examiner_of(backend, waived=["P1", "P4"])
    await examiner.start()
    waived = {promise.id: promise.waived for promise in (await examiner.ready()).promises}
    assert waived == {"P1": False, "P4": True}


def test_all_broken_promises_are_named() -> None:
    with pytest.raises(HostUnfit, match=r"P4.*P9"):
        refuse_broken([BROKEN, replace(BROKEN, id="P9", fix=None)])
    refuse_broken([KEPT, replace(BROKEN, waived=True)])
