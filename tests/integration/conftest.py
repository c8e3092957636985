"""A native backend of a test module's own: one whose helpers may be killed."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.conftest import running_native
from tests.integration.host import nothing_left

from code_executor.sandbox.native import NativeBackend


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def started(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NativeBackend]:
    """Started as the service starts it."""
    async with running_native(tmp_path_factory.mktemp("data")) as backend:
        assert isinstance(backend, NativeBackend)
        yield backend


@pytest_asyncio.fixture(loop_scope="module")
async def backend(started: NativeBackend) -> AsyncIterator[NativeBackend]:
    """The module's backend; after each test nothing of its sandboxes is left."""
    yield started
    await nothing_left(started)
