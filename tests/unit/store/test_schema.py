"""The tables fit every engine the records may live in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Dialect
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from code_executor.store.schema import metadata


@pytest.mark.parametrize("make_dialect", [sqlite.dialect, postgresql.dialect])
def test_every_table_and_index_can_be_said_in_the_dialect(
    make_dialect: Callable[[], Dialect],
) -> None:
    dialect = make_dialect()
    for table in metadata.sorted_tables:
        assert table.name in str(CreateTable(table).compile(dialect=dialect))
        for index in table.indexes:
            assert str(index.name) in str(CreateIndex(index).compile(dialect=dialect))


def test_names_fit_into_postgresql() -> None:
    for table in metadata.sorted_tables:
        names = [index.name for index in table.indexes] + [c.name for c in table.constraints]
        assert all(name is not None and len(str(name)) <= 63 for name in names)


def test_a_programs_output_comes_last_so_that_filters_need_not_read_it() -> None:
    assert list(metadata.tables["runs"].columns.keys())[-2:] == ["stdout", "stderr"]
