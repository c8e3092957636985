"""Records to save, and databases to save them in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import NullPool

from code_executor.model import Limits, Run, RunStatus, StoredFile
from code_executor.ports import Records
from code_executor.store import SqliteRecords
from code_executor.store.schema import metadata

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def make_run() -> Callable[..., Run]:
    def make(run_id: str = "run_a", **changes: Any) -> Run:
        usual: dict[str, Any] = {
            "tenant": "ann",
            "language": "python",
            "status": RunStatus.SUCCEEDED,
            "code_sha256": "c" * 64,
            "limits": Limits(),
            "created_at": NOON,
        }
        return Run(id=run_id, **usual | changes)

    return make


@pytest.fixture
def make_file() -> Callable[..., StoredFile]:
    def make(file_id: str = "file_a", **changes: Any) -> StoredFile:
        usual: dict[str, Any] = {
            "tenant": "ann",
            "name": "plot.png",
            "size": 3,
            "sha256": "a" * 64,
            "content_type": "image/png",
            "purpose": "artifact",
            "created_at": NOON,
        }
        return StoredFile(id=file_id, **usual | changes)

    return make


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/data/records.db"


@pytest.fixture
async def records(url: str) -> AsyncIterator[SqliteRecords]:
    opened = SqliteRecords(url)
    _as_the_port_says: Records = opened
    await opened.start()
    yield opened
    await opened.close()


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    """A database with the schema, foreign keys on, in autocommit mode."""
    engine = create_engine(
        f"sqlite:///{tmp_path}/plain.db", isolation_level="AUTOCOMMIT", poolclass=NullPool
    )
    with engine.connect() as opened:
        opened.exec_driver_sql("PRAGMA synchronous = OFF")
        metadata.create_all(opened)
        opened.exec_driver_sql("PRAGMA foreign_keys = ON")
        yield opened
