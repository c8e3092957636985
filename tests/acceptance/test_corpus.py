"""Byte for byte: a program in the sandbox prints and ends as it does under the bare interpreter.

A flavour's warm and cold ways are both tried: the corpus has programs of each. The native backend
runs all of it here, the others in ``test_corpus_backends.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.acceptance.cases import LANGUAGES, cases, plan_of
from tests.acceptance.comparing import References, difference, end_of, has_module
from tests.acceptance.corpus import Case
from tests.acceptance.differing import HEAD_START

from code_executor.ports import Backend
from code_executor.sandbox.conformance.bench import carry_out

pytestmark = [pytest.mark.sandbox, pytest.mark.asyncio(loop_scope="session")]
ENOUGH = {"python": 250, "node": 40, "ruby": 40, "php": 40, "go": 40}


def _parameters() -> Iterator[Any]:
    """Each case as a parameter of the test below, the known differences marked."""
    for language in LANGUAGES:
        for case in cases(language):
            name = f"{language}/{case.id}"
            reason = HEAD_START.get(name)
            marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
            yield pytest.param(case, id=name, marks=marks)


@pytest.mark.parametrize("case", [*_parameters()])
async def test_same_as_the_interpreter(native: Backend, case: Case, references: References) -> None:
    available = {status.id for status in await native.languages() if status.available}
    if case.language not in available:
        pytest.skip(f"{case.language} is not available here")
    if case.needs and not has_module(case.needs):
        pytest.skip(f"{case.needs} is not installed in the runtime")
    outcome = await carry_out(native, plan_of(case))
    found = difference(references.of(case), end_of(outcome))
    assert not found, f"{case.language}/{case.id} ({outcome.status}):\n{found}"


@pytest.mark.parametrize("language", LANGUAGES)
async def test_the_corpus_is_large(language: str) -> None:
    assert len(cases(language)) >= ENOUGH[language]


async def test_every_exception_is_a_case() -> None:
    assert set(HEAD_START) <= {f"{name}/{case.id}" for name in LANGUAGES for case in cases(name)}
