"""The probes at the start of the service, on the real sandbox: all held back, and quickly."""

from __future__ import annotations

import time

import pytest

from code_executor.languages import load
from code_executor.ports import Backend
from code_executor.sandbox.conformance.attempts import ATTEMPTS
from code_executor.sandbox.conformance.isolation import try_attempts
from code_executor.sandbox.probes import probe

pytestmark = [pytest.mark.sandbox, pytest.mark.asyncio(loop_scope="session")]


async def test_every_promise_is_kept(native: Backend) -> None:
    python = next(each for each in load() if each.id == "python")
    promises = await probe(native, python)
    assert {promise.id for promise in promises} >= {"P1", "P4", "P6", "P7"}
    assert all(promise.kept for promise in promises), [p.evidence for p in promises if not p.kept]


async def test_the_start_stays_fast(native: Backend) -> None:
    started = time.monotonic()
    await try_attempts(native, "quick")
    assert time.monotonic() - started < 3


async def test_all_attempts_in_one_sandbox(native: Backend) -> None:
    """One after another they meet what the earlier ones left, and are still held back."""
    names = tuple(name for name in ATTEMPTS if name not in {"leftovers", "gain_by_set_user_id"})
    through = [v for v in await try_attempts(native, *names) if not v.held]
    assert through == []
