"""A native backend of a test module's own, whose helpers may be killed; and init's driver."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.c.build import C, compiled, sources
from tests.conftest import running_native
from tests.integration.host import nothing_left, until

from code_executor.sandbox.native import NativeBackend


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def started(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NativeBackend]:
    """Started as the service starts it."""
    async with running_native(tmp_path_factory.mktemp("data")) as backend:
        assert isinstance(backend, NativeBackend)
        yield backend


@pytest_asyncio.fixture(loop_scope="module")
async def backend(started: NativeBackend) -> AsyncIterator[NativeBackend]:
    """The module's backend; after each test nothing of its sandboxes is left, and its helpers are
    there again."""
    yield started
    await until(lambda: not started._starting)
    await nothing_left(started)


@pytest.fixture(scope="session")
def drive_init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver, built once."""
    return compiled(
        tmp_path_factory.mktemp("drive") / "drive_init",
        C / "drive_init.c",
        C / "place.c",
        *sources("proto", "identity", "stage", "collect", "program", "init", "job", "ending"),
    )
