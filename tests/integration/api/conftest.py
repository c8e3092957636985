"""The real application over the real service, records and objects; only the sandbox is scripted.

``scripts`` is the sandbox's script: what a program of that text does. One that is not there
prints ``ok``.
"""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from code_executor.api import EdgeConfig, create_app
from code_executor.auth import KeyRing
from code_executor.clock import SystemClock
from code_executor.languages import load
from code_executor.model import MIB, Outcome, Promise
from code_executor.objects import local_objects
from code_executor.observe import Metrics, configure_logging
from code_executor.pool import Pool
from code_executor.sandbox.fake import FakeBackend
from code_executor.service import Service
from code_executor.shelf import Size
from code_executor.signing import Signer
from code_executor.store import SqliteRecords
from code_executor.worker import Worker

KEYS = "tok-a:acme:1000:1000,tok-b:beta:1000:1000,tok-slow:slow:0.001:2"
SIGNING_KEY = b"k" * 32


@pytest.fixture(autouse=True)
def log() -> io.StringIO:
    """Everything that the service logs during the test."""
    stream = io.StringIO()
    configure_logging("DEBUG", stream)
    return stream


@pytest.fixture
def scripts() -> dict[str, Outcome]:
    return {}


@pytest.fixture
def backend(scripts: dict[str, Outcome]) -> FakeBackend:
    promise = Promise("P1", "No network", kept=True, evidence="seen")
    return FakeBackend(scripts, languages=load(), promises=[promise])


@pytest.fixture
async def service(backend: FakeBackend, metrics: Metrics, tmp_path: Path) -> AsyncIterator[Service]:
    records = SqliteRecords(f"sqlite:///{tmp_path}/records.db")
    languages = load()
    sizes = {flavour.name: Size(0, 0) for item in languages for flavour in item.flavours}
    pool, clock = Pool(backend, sizes), SystemClock()
    await records.start()
    service = Service(
        backend=backend,
        worker=Worker(pool, clock, max_concurrency=4, queue_limit=4),
        records=records,
        objects=local_objects(tmp_path / "objects")[0],
        languages=languages,
        clock=clock,
        metrics=metrics,
    )
    await service.start()
    yield service
    await service.drain(0)
    await pool.close()
    await records.close()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def config() -> EdgeConfig:
    return EdgeConfig(
        public_base_url="https://run.example",
        max_file_bytes=MIB,
        max_body_bytes=2 * MIB,
        max_buffered_bytes=3 * MIB,
        body_timeout_s=0.3,
    )


@pytest.fixture
def app(service: Service, metrics: Metrics, config: EdgeConfig) -> FastAPI:
    keys, signer = KeyRing.parse(KEYS), Signer([SIGNING_KEY])
    return create_app(service, keys=keys, signer=signer, config=config, metrics=metrics)


def client_of(app: FastAPI, token: str | None) -> httpx.AsyncClient:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://service", headers=headers)


@pytest.fixture
async def acme(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the tenant ``acme``."""
    async with client_of(app, "tok-a") as client:
        yield client


@pytest.fixture
async def beta(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of another tenant."""
    async with client_of(app, "tok-b") as client:
        yield client


@pytest.fixture
async def slow(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client that may create two things, then none for a long time."""
    async with client_of(app, "tok-slow") as client:
        yield client


@pytest.fixture
async def nobody(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a key."""
    async with client_of(app, None) as client:
        yield client
