"""The other backends, each started once."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.conformance.oci import running

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
