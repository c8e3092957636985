"""The docker backend keeps every promise of the conformance suite but those it declares.

What an engine's container cannot do is listed in :data:`DECLARED` with the reason. A check listed
there that passes is a failure too: the list says what is so, not what might be.
"""

from __future__ import annotations

import pytest

from code_executor.sandbox.conformance import CHECKS, Check, run_check
from code_executor.sandbox.docker import DECLARED as ATTEMPTS
from code_executor.sandbox.docker import DockerBackend

pytestmark = pytest.mark.docker

DECLARED = {f"isolation.{name}": reason for name, reason in ATTEMPTS.items()}


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
async def test_check(docker: DockerBackend, check: Check) -> None:
    available = {status.id for status in await docker.languages() if status.available}
    result = await run_check(check, docker, available)
    assert result.skipped is None, "every language has its image"
    if check.name in DECLARED:
        assert not result.passed, f"declared as {DECLARED[check.name]!r}, and yet it is kept"
        pytest.xfail(DECLARED[check.name])
    assert result.passed, f"{check.promise}: {check.title}\n{result.message}"


def test_what_is_declared_exists() -> None:
    assert set(DECLARED) <= {check.name for check in CHECKS}
