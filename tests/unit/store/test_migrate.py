"""The scripts lead to the schema, once, and never from a newer one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine, inspect
from sqlalchemy.pool import NullPool

from code_executor.errors import HostUnfit
from code_executor.store.migrate import migrate
from code_executor.store.schema import metadata


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Connection]:
    engine = create_engine(
        f"sqlite:///{tmp_path}/empty.db", isolation_level="AUTOCOMMIT", poolclass=NullPool
    )
    with engine.connect() as connection:
        yield connection


def test_the_migrated_schema_is_the_metadata(empty: Connection) -> None:
    migrate(empty)
    assert compare_metadata(MigrationContext.configure(empty), metadata) == []


def test_the_migrated_schema_is_word_for_word_what_the_metadata_creates(
    empty: Connection, connection: Connection
) -> None:
    """Sees what the comparison above does not: conditions of indexes, constraints, order."""
    migrate(empty)
    assert _definitions(empty) == _definitions(connection)


def test_a_second_time_changes_nothing(empty: Connection) -> None:
    migrate(empty)
    empty.exec_driver_sql("INSERT INTO runs VALUES ('r', 't', 's', 'l', 1, '{}', '', '')")
    migrate(empty)
    assert empty.exec_driver_sql("SELECT count(*) FROM runs").scalar() == 1


def test_a_newer_schema_is_refused_by_name(empty: Connection) -> None:
    migrate(empty)
    empty.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(HostUnfit, match="9999") as refused:
        migrate(empty)
    assert "install the version that wrote it" in refused.value.fix


def test_a_migration_that_is_rolled_back_leaves_nothing(empty: Connection) -> None:
    empty.exec_driver_sql("BEGIN IMMEDIATE")
    migrate(empty)
    empty.exec_driver_sql("ROLLBACK")
    assert inspect(empty).get_table_names() == []


def _definitions(connection: Connection) -> dict[str, str]:
    rows = connection.exec_driver_sql(
        "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND name != 'alembic_version'"
    )
    return {name: " ".join(sql.split()) for name, sql in rows}
