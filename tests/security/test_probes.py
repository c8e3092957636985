"""The probes at the start of the service, on the real sandbox: all held back, and quickly."""

from __future__ import annotations

import time

import pytest

from code_executor.ports import Backend
from code_executor.sandbox.conformance.attempts import ATTEMPTS
from code_executor.sandbox.conformance.isolation import try_attempts
from code_executor.sandbox.differs import reasons

pytestmark = [pytest.mark.sandbox, pytest.mark.asyncio(loop_scope="session")]


async def test_every_promise_is_kept(each_backend: Backend) -> None:
    promises = await each_backend.probe()
    assert {promise.id for promise in promises} >= {"P1", "P4", "P6", "P7"}
    assert all(promise.kept for promise in promises), [p.evidence for p in promises if not p.kept]


async def test_the_start_stays_fast(native: Backend) -> None:
    started = time.monotonic()
    await try_attempts(native, "quick")
    assert time.monotonic() - started < 3


async def test_all_attempts_in_one_sandbox(each_backend: Backend) -> None:
    """One after another they meet what the earlier ones left, and are still held back."""
    if each_backend.name == "gvisor":
        pytest.skip("several walk the root: in gVisor more CPU time than one run may have")
    names = tuple(name for name in ATTEMPTS if name not in {"leftovers", "gain_by_set_user_id"})
    declared = reasons(each_backend.name)
    through = {v.name for v in await try_attempts(each_backend, *names) if not v.held}
    assert through == {name for name in names if f"isolation.{name}" in declared}
