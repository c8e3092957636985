"""The docker backend keeps every promise of the conformance suite but those it declares."""

from __future__ import annotations

import pytest
from tests.conformance.differing import try_check

from code_executor.sandbox.conformance import CHECKS, Check
from code_executor.sandbox.docker import DockerBackend

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="session")]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
async def test_check(docker: DockerBackend, check: Check) -> None:
    await try_check(docker, check)


async def test_every_language_has_its_image(docker: DockerBackend) -> None:
    """A check whose language is missing is skipped: here none is."""
    assert {status.id for status in await docker.languages() if not status.available} == set()
