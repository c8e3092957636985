"""A native backend of a test module's own: one whose helpers may be killed."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.conftest import runtime_dir
from tests.integration.host import nothing_left

from code_executor.compose import make_backend, make_languages
from code_executor.config import Settings
from code_executor.errors import HostUnfit
from code_executor.sandbox.native import NativeBackend


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def started(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NativeBackend]:
    """Started as the service starts it; see ``tests/conftest.py`` for a host that cannot."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"), runtime_dir=runtime_dir())
    backend = make_backend(settings, make_languages(settings))
    assert isinstance(backend, NativeBackend)
    try:
        await backend.start()
    except HostUnfit as unfit:
        await backend.close()
        if os.environ.get("WITHOUT_SANDBOX") == "1":
            pytest.skip(f"no sandbox on this host: {unfit}")
        raise
    yield backend
    await backend.close()


@pytest_asyncio.fixture(loop_scope="module")
async def backend(started: NativeBackend) -> AsyncIterator[NativeBackend]:
    """The module's backend; after each test nothing of its sandboxes is left."""
    yield started
    await nothing_left(started)
