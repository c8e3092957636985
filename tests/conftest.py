"""What the groups of tests share: logging left as it was; each backend, started once.

A host on which the sandbox cannot be started fails these tests: a skipped promise is not a kept
one. ``WITHOUT_SANDBOX=1`` turns the failures into skips, for work on everything else. The other
backends need what not every host has: where that is missing their tests are skipped, unless
``CODE_EXECUTOR_MUST_RUN`` names them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import structlog
from tests.engine.rig import Engine, NoEngine, must_run, running_engine

from code_executor.compose import make_backend, make_languages
from code_executor.config import Settings
from code_executor.errors import HostUnfit
from code_executor.ports import Backend
from code_executor.sandbox.docker import DockerBackend

OTHERS = frozenset({"docker", "engine", "gvisor", "runc"})
"""The fixtures and parameters that bring another backend than the native one."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs another backend as ``beside``: scripts/test.sh runs it beside the rest."""
    for item in items:
        given = getattr(item, "callspec", None)
        chosen = map(str, given.params.values()) if given else ()
        if OTHERS.intersection([*getattr(item, "fixturenames", ()), *chosen]):
            item.add_marker("beside")


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Whatever a test makes of the process's logging ends with it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for logger in root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.disabled = False  # import-linter silences every logger that is there before it
    structlog.reset_defaults()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def native(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Backend]:
    """The native backend, as the service composes it, with a data directory of its own."""
    async with running_native(tmp_path_factory.mktemp("data")) as backend:
        yield backend


@asynccontextmanager
async def running_native(data_dir: Path, **given: Any) -> AsyncIterator[Backend]:
    """A started native backend. Where none can start the test fails, or is skipped on request."""
    settings = Settings(data_dir=data_dir, runtime_dir=runtime_dir(), **given)
    backend = make_backend(settings, make_languages(settings))
    try:
        await backend.start()
    except HostUnfit as unfit:
        await backend.close()
        if os.environ.get("WITHOUT_SANDBOX") == "1":
            pytest.skip(f"no sandbox on this host: {unfit}")
        raise
    yield backend
    await backend.close()


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A Docker engine of the tests' own, with the runner images of this checkout."""
    stack = ExitStack()
    try:
        started = stack.enter_context(running_engine())
    except NoEngine as reason:
        if must_run(os.environ, "docker"):
            pytest.fail(f"no Docker engine: {reason}")
        pytest.skip(f"no Docker engine: {reason}")
    with stack:
        yield started


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def docker(
    engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[DockerBackend]:
    """The docker backend on that engine, as the service composes it."""
    async with running_docker(engine, tmp_path_factory.mktemp("docker")) as backend:
        yield backend


@asynccontextmanager
async def running_docker(
    engine: Engine, data_dir: Path, **settings_given: Any
) -> AsyncIterator[DockerBackend]:
    """A started docker backend."""
    settings = Settings.load(
        data_dir=data_dir,
        sandbox_backend="docker",
        docker_host=engine.address,
        **settings_given,
    )
    backend = make_backend(settings, make_languages(settings))
    assert isinstance(backend, DockerBackend)
    try:
        await backend.start()
        yield backend
    finally:
        await backend.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def runc(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Backend]:
    """The OCI backend with runc."""
    async with running_oci("runc", tmp_path_factory.mktemp("runc")) as backend:
        yield backend


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def gvisor(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Backend]:
    """The OCI backend with gVisor."""
    async with running_oci("gvisor", tmp_path_factory.mktemp("gvisor")) as backend:
        yield backend


@asynccontextmanager
async def running_oci(name: str, data_dir: Path) -> AsyncIterator[Backend]:
    """A started OCI backend, as the service composes it."""
    settings = Settings.load(data_dir=data_dir, runtime_dir=runtime_dir(), sandbox_backend=name)
    backend = make_backend(settings, make_languages(settings))
    try:
        await backend.start()
    except HostUnfit as unfit:
        await backend.close()
        if must_run(os.environ, name):
            raise
        pytest.skip(f"no {name} on this host: {unfit} ({unfit.fix})")
    yield backend
    await backend.close()


@pytest.fixture(
    scope="session",
    params=["native", "runc", "gvisor", pytest.param("docker", marks=pytest.mark.docker)],
)
def each_backend(request: pytest.FixtureRequest) -> Backend:
    """Every backend in turn."""
    backend: Backend = request.getfixturevalue(request.param)
    return backend


def runtime_dir() -> Path:
    """Where the interpreters' runtimes are: ``RUNTIME_DIR``, or beside the source."""
    return Path(os.environ.get("RUNTIME_DIR") or Path(__file__).parents[1] / ".runtime")
