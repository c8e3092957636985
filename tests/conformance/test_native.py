"""The native backend keeps every promise of the conformance suite."""

from __future__ import annotations

import pytest

from code_executor.ports import Backend
from code_executor.sandbox.conformance import CHECKS, Check, run_check

pytestmark = [pytest.mark.sandbox, pytest.mark.asyncio(loop_scope="session")]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
async def test_check(native: Backend, check: Check) -> None:
    available = {status.id for status in await native.languages() if status.available}
    result = await run_check(check, native, available)
    if result.skipped is not None:
        pytest.skip(result.skipped)
    assert result.passed, f"{check.promise}: {check.title}\n{result.message}"
