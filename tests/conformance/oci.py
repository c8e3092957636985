"""The OCI backends in tests; ``CODE_EXECUTOR_MUST_RUN`` lists those that must be there.

A runtime that is not installed skips its tests, unless that variable names the backend.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.conftest import runtime_dir

from code_executor.compose import make_backend, make_languages
from code_executor.config import Settings
from code_executor.errors import HostUnfit
from code_executor.ports import Backend
from code_executor.sandbox.conformance import Check, run_check
from code_executor.sandbox.differs import MAY_PASS, reasons


@asynccontextmanager
async def running(name: str, data_dir: Path) -> AsyncIterator[Backend]:
    """A started backend, as the service composes it."""
    settings = Settings.load(data_dir=data_dir, runtime_dir=runtime_dir(), sandbox_backend=name)
    backend = make_backend(settings, make_languages(settings))
    try:
        await backend.start()
    except HostUnfit as unfit:
        await backend.close()
        if name in os.environ.get("CODE_EXECUTOR_MUST_RUN", "").split(","):
            raise
        pytest.skip(f"no {name} on this host: {unfit} ({unfit.fix})")
    yield backend
    await backend.close()


async def try_check(backend: Backend, check: Check) -> None:
    """A check passes, or is declared to fail and does."""
    available = {status.id for status in await backend.languages() if status.available}
    result = await run_check(check, backend, available)
    if result.skipped is not None:
        pytest.skip(result.skipped)
    reason = reasons(backend.name).get(check.name)
    if reason is None:
        assert result.passed, f"{check.promise}: {check.title}\n{result.message}"
    else:
        wrong = result.passed and check.name not in MAY_PASS
        assert not wrong, f"{check.name} passes: take it off sandbox/differs.py"
        pytest.xfail(reason)
