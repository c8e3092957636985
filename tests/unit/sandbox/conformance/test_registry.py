from __future__ import annotations

import pytest

from code_executor.ports import Backend
from code_executor.sandbox.conformance import CHECKS, registry
from code_executor.sandbox.conformance.registry import Check, CheckFailed
from code_executor.sandbox.fake import FakeBackend, said


async def holds(backend: Backend) -> None:
    """Holds."""


async def breaks(backend: Backend) -> None:
    """Breaks."""
    raise CheckFailed("expected more")


async def crashes(backend: Backend) -> None:
    """Crashes."""
    raise OSError("no sandbox")


def as_check(body: registry.Body, language: str = "python") -> Check:
    return Check(f"some.{body.__name__}", body.__doc__ or "", "P1", language, body)


async def test_results_say_what_happened() -> None:
    backend = FakeBackend()
    passed, broken, crashed = [
        await registry.run_check(as_check(body), backend, {"python"})
        for body in (holds, breaks, crashes)
    ]
    assert (passed.passed, passed.message) == (True, "")
    assert (broken.passed, broken.message) == (False, "CheckFailed: expected more")
    assert (crashed.passed, crashed.message) == (False, "OSError: no sandbox")


async def test_a_missing_language_is_skipped_and_does_not_pass() -> None:
    result = await registry.run_check(as_check(holds, "cobol"), FakeBackend(), {"python"})
    assert result.skipped == "cobol is not available here"
    assert not result.passed


async def test_only_selects() -> None:
    chosen = [as_check(holds), as_check(breaks)]
    results = await registry.run_all(FakeBackend(), chosen, only=lambda c: c.name == "some.breaks")
    assert [result.check.name for result in results] == ["some.breaks"]


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match=CHECKS[0].name):
        registry.add(CHECKS[0])


def test_every_check_is_described() -> None:
    promises = {f"P{number}" for number in range(1, 13)}
    assert all(item.title and item.promise in promises for item in CHECKS)
    assert {item.language for item in CHECKS} == {"python", "node", "ruby", "php", "go"}


async def test_a_backend_that_runs_nothing_fails() -> None:
    """Every program of the fake prints ``ok``: whoever passes on that proves nothing."""
    fake = FakeBackend(lambda _: said("ok\n"))
    passed = [
        item.name
        for item in CHECKS
        if item.name.startswith(("contract.", "output.", "memory.", "isolation.", "polyglot."))
        and (await registry.run_check(item, fake, {item.language})).passed
    ]
    assert passed == []
