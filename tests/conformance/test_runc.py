"""The OCI backend with runc keeps every promise of the conformance suite."""

from __future__ import annotations

import pytest
from tests.conformance.differing import try_check

from code_executor.ports import Backend
from code_executor.sandbox.conformance import CHECKS, Check

pytestmark = [pytest.mark.sandbox, pytest.mark.asyncio(loop_scope="session")]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
async def test_check(runc: Backend, check: Check) -> None:
    await try_check(runc, check)
