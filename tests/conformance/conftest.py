"""The other backends, each started once; ``CODE_EXECUTOR_MUST_RUN`` lists those that must be there.

A runtime that is not installed skips its tests, unless that variable names the backend.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from tests.conftest import runtime_dir

from code_executor.compose import make_backend, make_languages
from code_executor.config import Settings
from code_executor.errors import HostUnfit
from code_executor.ports import Backend


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def runc(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Backend]:
    """The OCI backend with runc."""
    async with running("runc", tmp_path_factory.mktemp("data")) as backend:
        yield backend


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def gvisor(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Backend]:
    """The OCI backend with gVisor."""
    async with running("gvisor", tmp_path_factory.mktemp("data")) as backend:
        yield backend


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
