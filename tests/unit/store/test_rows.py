"""Run and StoredFile survive the way through a real database."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from code_executor.model import (
    LimitHit,
    Limits,
    Phase,
    Run,
    RunStatus,
    Skipped,
    StoredFile,
    Usage,
)
from code_executor.store.rows import (
    column_text,
    file_from,
    file_row,
    micros,
    moment,
    run_from,
    run_row,
)

# Scalar values without NUL are what every column holds; output and the document hold NUL as well.
plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
scalars = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
anything = st.text(st.sampled_from('ab\x00\x1f\n"\\é€😀\ufffd\ud800\ud83d\ude00\udfff'), max_size=9)
times = st.datetimes(
    min_value=datetime(1980, 1, 1),  # noqa: DTZ001 - hypothesis wants bounds without a zone
    max_value=datetime(2100, 1, 1),  # noqa: DTZ001 - likewise
    timezones=st.just(UTC),
)
numbers = st.integers(0, 2**53)
pairs = st.lists(st.tuples(scalars, scalars), max_size=4).map(tuple)


def files(text: st.SearchStrategy[str]) -> st.SearchStrategy[StoredFile]:
    return st.builds(
        StoredFile,
        id=text,
        tenant=text,
        name=text,
        size=numbers,
        sha256=text,
        content_type=text,
        purpose=text,
        created_at=times,
        expires_at=st.none() | times,
        run_id=st.none() | text,
    )


def runs(columns: st.SearchStrategy[str], rest: st.SearchStrategy[str]) -> st.SearchStrategy[Run]:
    return st.builds(
        Run,
        id=columns,
        tenant=columns,
        language=columns,
        status=st.sampled_from(RunStatus),
        code_sha256=rest,
        limits=st.builds(Limits, *[numbers] * len(Limits.names())),
        created_at=times,
        metadata=st.lists(st.tuples(rest, rest), max_size=4).map(tuple),
        attempts=numbers,
        exit_code=st.none() | st.integers(-300, 300),
        signal=st.none() | rest,
        phase=st.sampled_from(Phase),
        limit_hit=st.none() | st.sampled_from(LimitHit),
        reason=st.none() | rest,
        stdout=rest,
        stderr=rest,
        stdout_truncated=st.booleans(),
        stderr_truncated=st.booleans(),
        usage=st.builds(Usage, compile_ms=st.none() | numbers, wall_ms=numbers),
        artifacts=st.lists(files(columns), max_size=3, unique_by=lambda f: f.id).map(tuple),
        skipped=st.lists(
            st.builds(Skipped, name=rest, reason=rest, size=st.none() | numbers), max_size=3
        ).map(tuple),
        started_at=st.none() | times,
        finished_at=st.none() | times,
    )


def through_sqlite(row: dict[str, object]) -> dict[str, Any]:
    """The row as an SQLite table gives it back."""
    names, marks = ", ".join(f'"{name}"' for name in row), ", ".join("?" * len(row))
    with sqlite3.connect(":memory:") as database:
        database.row_factory = sqlite3.Row
        database.execute(f"CREATE TABLE it ({names})")
        database.execute(f"INSERT INTO it VALUES ({marks})", tuple(row.values()))
        back = dict(database.execute("SELECT * FROM it").fetchone())
    database.close()
    return back


@settings(deadline=None)  # the machine may be busy; this is about values, not time
@given(runs(plain, scalars))
def test_a_run_comes_back_equal(run: Run) -> None:
    assert run_from(through_sqlite(run_row(run)), run.artifacts) == run


@settings(deadline=None)
@given(files(plain))
def test_a_file_comes_back_equal(file: StoredFile) -> None:
    assert file_from(through_sqlite(file_row(file))) == file


@settings(deadline=None)
@given(runs(anything, anything))
def test_nothing_that_a_string_can_hold_makes_a_save_fail(run: Run) -> None:
    back = run_from(through_sqlite(run_row(run)), ())
    assert back == replace(_cleaned(run), artifacts=())


@settings(deadline=None)
@given(files(anything))
def test_a_file_with_any_name_is_stored_with_its_clean_name(file: StoredFile) -> None:
    back = file_from(through_sqlite(file_row(file)))
    assert back.name == column_text(file.name)
    back.name.encode()


def _cleaned(run: Run) -> Run:
    """The run as its document says: U+FFFD for a surrogate, and for NUL in columns."""
    clean = _without_surrogates
    return replace(
        run,
        id=column_text(run.id),
        tenant=column_text(run.tenant),
        language=column_text(run.language),
        code_sha256=clean(run.code_sha256),
        metadata=tuple((clean(key), clean(value)) for key, value in run.metadata),
        signal=None if run.signal is None else clean(run.signal),
        reason=None if run.reason is None else clean(run.reason),
        stdout=clean(run.stdout),
        stderr=clean(run.stderr),
        skipped=tuple(Skipped(clean(s.name), clean(s.reason), s.size) for s in run.skipped),
    )


def _without_surrogates(text: str) -> str:
    return "".join("\ufffd" if 0xD800 <= ord(char) <= 0xDFFF else char for char in text)


def test_output_keeps_nul_and_a_column_does_not(make_run: Callable[..., Run]) -> None:
    row = run_row(make_run(stdout="a\x00b", language="py\x00"))
    assert row["stdout"] == b"a\x00b"
    assert row["language"] == "py\ufffd"


def test_artifacts_keep_their_order_and_may_have_gone(
    make_run: Callable[..., Run], make_file: Callable[..., StoredFile]
) -> None:
    first, gone, last = make_file("file_z"), make_file("file_m"), make_file("file_a")
    row = run_row(make_run(artifacts=(first, gone, last)))
    assert run_from(row, [last, first]).artifacts == (first, last)


@settings(deadline=None)
@given(times)
def test_time_is_kept_to_the_microsecond(when: datetime) -> None:
    assert moment(micros(when)) == when


def test_time_of_another_zone_is_the_same_moment() -> None:
    there = datetime(2026, 3, 1, 14, tzinfo=timezone(timedelta(hours=2)))
    assert moment(micros(there)) == there


def test_time_without_a_zone_is_refused() -> None:
    with pytest.raises(TypeError):
        micros(datetime(2026, 3, 1))  # noqa: DTZ001 - the point of the test
