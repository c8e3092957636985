"""What the statements mean, on a real SQLite database."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Connection, event
from sqlalchemy.dialects.sqlite import insert

from code_executor.errors import Conflict, InvalidRequest
from code_executor.model import MIB, Run, RunStatus, StoredFile
from code_executor.store.sql import Statements

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)

MakeRun = Callable[..., Run]
MakeFile = Callable[..., StoredFile]


@pytest.fixture
def sql() -> Statements:
    return Statements(insert, claim_ttl=DAY, page_bytes=1 * MIB)


def page(
    sql: Statements, connection: Connection, limit: int = 20, after: str | None = None, **only: str
) -> tuple[list[str], bool]:
    """Ids of a page of Ann's runs."""
    status = RunStatus(only["status"]) if "status" in only else None
    found, more = sql.list_runs(connection, "ann", limit, after, status, only.get("language"))
    return [run.id for run in found], more


class TestRuns:
    def test_a_saved_run_is_got_with_its_artifacts(
        self, sql: Statements, connection: Connection, make_run: MakeRun, make_file: MakeFile
    ) -> None:
        run = make_run(artifacts=(make_file("file_b", run_id="run_a"), make_file("file_a")))
        run = replace(run, artifacts=tuple(replace(f, run_id="run_a") for f in run.artifacts))
        sql.save_run(connection, run)
        assert sql.get_run(connection, "ann", "run_a") == run
        assert sql.get_file(connection, "ann", "file_b") == run.artifacts[0]

    def test_saving_again_replaces(
        self, sql: Statements, connection: Connection, make_run: MakeRun
    ) -> None:
        sql.save_run(connection, make_run(status=RunStatus.RUNNING))
        ended = make_run(status=RunStatus.FAILED, exit_code=3, stdout="x", stderr="y")
        sql.save_run(connection, ended)
        assert sql.get_run(connection, "ann", "run_a") == ended

    def test_another_tenants_run_is_as_absent(
        self, sql: Statements, connection: Connection, make_run: MakeRun
    ) -> None:
        sql.save_run(connection, make_run())
        assert sql.get_run(connection, "bob", "run_a") is None
        assert not sql.delete_run(connection, "bob", "run_a")
        assert sql.list_runs(connection, "bob", 20, None, None, None) == ([], False)
        assert sql.get_run(connection, "ann", "run_a") is not None

    def test_another_tenants_run_is_never_overwritten(
        self, sql: Statements, connection: Connection, make_run: MakeRun
    ) -> None:
        sql.save_run(connection, make_run(stdout="ann's"))
        with pytest.raises(Conflict):
            sql.save_run(connection, make_run(tenant="bob", stdout="bob's"))
        found = sql.get_run(connection, "ann", "run_a")
        assert found is not None
        assert found.stdout == "ann's"

    def test_an_id_that_no_column_can_hold_is_absent(
        self, sql: Statements, connection: Connection
    ) -> None:
        assert sql.get_run(connection, "ann", "run_\ud800\x00") is None

    def test_deleting_takes_the_files_and_the_claim_along(
        self, sql: Statements, connection: Connection, make_run: MakeRun, make_file: MakeFile
    ) -> None:
        run = make_run(artifacts=(make_file(run_id="run_a"),))
        sql.save_run(connection, run, ("key", "b" * 64))
        assert sql.delete_run(connection, "ann", "run_a")
        assert sql.get_run(connection, "ann", "run_a") is None
        assert sql.find_file(connection, "file_a") is None
        assert sql.find_idempotent(connection, "ann", "key", NOON) is None
        assert not sql.delete_run(connection, "ann", "run_a")

    def test_unfinished_runs_are_the_queued_and_running_of_all_tenants(
        self, sql: Statements, connection: Connection, make_run: MakeRun
    ) -> None:
        for number, status in enumerate(RunStatus):
            created = NOON + number * SECOND
            sql.save_run(
                connection,
                make_run(f"run_{status}", status=status, tenant=status, created_at=created),
            )
        found = [run.id for run in sql.unfinished_runs(connection)]
        assert found == ["run_queued", "run_running"]

    def test_old_finished_runs_expire_oldest_first(
        self, sql: Statements, connection: Connection, make_run: MakeRun
    ) -> None:
        for number in range(4):
            sql.save_run(connection, make_run(f"run_{number}", created_at=NOON + number * SECOND))
        early = make_run("run_q", status=RunStatus.QUEUED, created_at=NOON - DAY)
        sql.save_run(connection, early)
        assert sql.expire_runs(connection, NOON + 3 * SECOND, 2) == 2
        assert page(sql, connection) == (["run_3", "run_2", "run_q"], False)
        assert sql.expire_runs(connection, NOON + 3 * SECOND, 2) == 1
        assert page(sql, connection) == (["run_3", "run_q"], False)


class TestPages:
    def test_newest_first_and_onwards_from_the_last(
        self, sql: Statements, connection: Connection, make_run: MakeRun
    ) -> None:
        for number in range(5):
            sql.save_run(connection, make_run(f"run_{number}", created_at=NOON + number * SECOND))
        assert page(sql, connection, 2) == (["run_4", "run_3"], True)
        assert page(sql, connection, 2, "run_3") == (["run_2", "run_1"], True)
        assert page(sql, connection, 2, "run_1") == (["run_0"], False)
        assert page(sql, connection, 5) == (["run_4", "run_3", "run_2", "run_1", "run_0"], False)

    def test_runs_of_one_moment_are_neither_skipped_nor_repeated(
        self, sql: Statements, connection: Connection, make_run: MakeRun
    ) -> None:
        for name in "bdac":
            sql.save_run(connection, make_run(f"run_{name}"))
        assert page(sql, connection, 3) == (["run_d", "run_c", "run_b"], True)
        assert page(sql, connection, 3, "run_b") == (["run_a"], False)

    def test_filters_by_status_and_language(
        self, sql: Statements, connection: Connection, make_run: MakeRun
    ) -> None:
        sql.save_run(connection, make_run("run_1", language="go"))
        sql.save_run(connection, make_run("run_2", status=RunStatus.OOM))
        sql.save_run(connection, make_run("run_3", language="go", status=RunStatus.OOM))
        assert page(sql, connection, language="go") == (["run_3", "run_1"], False)
        assert page(sql, connection, status="oom") == (["run_3", "run_2"], False)
        assert page(sql, connection, status="oom", language="go") == (["run_3"], False)

    @pytest.mark.parametrize("after", ["run_unknown", "run_bobs"])
    def test_a_place_that_is_not_the_tenants_is_refused(
        self, sql: Statements, connection: Connection, make_run: MakeRun, after: str
    ) -> None:
        sql.save_run(connection, make_run("run_bobs", tenant="bob"))
        with pytest.raises(InvalidRequest) as refused:
            page(sql, connection, 20, after)
        assert refused.value.param == "after"

    def test_large_output_makes_pages_short_but_never_empty(
        self, sql: Statements, connection: Connection, make_run: MakeRun
    ) -> None:
        for number in range(3):
            large = "x" * (MIB * (2 if number == 2 else 0) + 600_000)
            created = NOON + number * SECOND
            sql.save_run(connection, make_run(f"run_{number}", stdout=large, created_at=created))
        assert page(sql, connection) == (["run_2"], True)
        assert page(sql, connection, 20, "run_2") == (["run_1"], True)
        assert page(sql, connection, 20, "run_1") == (["run_0"], False)

    @pytest.mark.parametrize("only", [{}, {"status": "succeeded"}, {"language": "python"}])
    def test_a_page_is_read_from_an_index_without_sorting(
        self, sql: Statements, connection: Connection, make_run: MakeRun, only: dict[str, str]
    ) -> None:
        sql.save_run(connection, make_run())
        plans = _plans_of(connection, lambda: page(sql, connection, 2, "run_a", **only))
        assert any("USING INDEX ix_runs_tenant" in plan for plan in plans)
        assert not any("SCAN" in plan or "TEMP B-TREE" in plan for plan in plans)

    def test_unfinished_runs_are_found_without_reading_the_finished(
        self, sql: Statements, connection: Connection
    ) -> None:
        plans = _plans_of(connection, lambda: sql.unfinished_runs(connection))
        assert "ix_runs_unfinished" in plans[0]

    def test_what_expires_is_found_by_index(self, sql: Statements, connection: Connection) -> None:
        def expire() -> None:
            sql.expire_runs(connection, NOON, 10)
            sql.expire_files(connection, NOON, 10)
            sql.expire_idempotency(connection, NOON, 10)
            sql.referenced(connection, ["a" * 64])

        plans = _plans_of(connection, expire)
        assert plans
        assert not any("SCAN" in plan for plan in plans)


def _plans_of(connection: Connection, call: Callable[[], object]) -> list[str]:
    """SQLite's query plans of the statements that ``call`` executes."""
    seen: list[tuple[str, tuple[object, ...]]] = []

    def note(_c: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        assert isinstance(parameters, tuple)
        seen.append((statement, parameters))

    event.listen(connection, "before_cursor_execute", note)
    call()
    event.remove(connection, "before_cursor_execute", note)
    plans = (connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {s}", p).all() for s, p in seen)
    return [row[3] for plan in plans for row in plan]


class TestIdempotency:
    def test_a_claim_is_found_by_its_tenant_only(
        self, sql: Statements, connection: Connection, make_run: MakeRun
    ) -> None:
        sql.save_run(connection, make_run(), ("key", "b" * 64))
        assert sql.find_idempotent(connection, "ann", "key", NOON) == ("b" * 64, "run_a")
        assert sql.find_idempotent(connection, "bob", "key", NOON) is None
        assert sql.find_idempotent(connection, "ann", "other", NOON) is None
        assert sql.find_idempotent(connection, "ann", "key", NOON + SECOND) is None

    def test_a_run_saved_again_keeps_its_claim(
        self, sql: Statements, connection: Connection, make_run: MakeRun
    ) -> None:
        sql.save_run(connection, make_run(status=RunStatus.QUEUED), ("key", "b" * 64))
        sql.save_run(connection, make_run(status=RunStatus.RUNNING))
        sql.save_run(connection, make_run(), ("key", "b" * 64))
        assert sql.find_idempotent(connection, "ann", "key", NOON) == ("b" * 64, "run_a")

    def test_a_second_run_cannot_take_the_key(
        self, sql: Statements, connection: Connection, make_run: MakeRun
    ) -> None:
        sql.save_run(connection, make_run(), ("key", "b" * 64))
        with pytest.raises(Conflict):
            sql.save_run(connection, make_run("run_b"), ("key", "b" * 64))
        assert sql.find_idempotent(connection, "ann", "key", NOON) == ("b" * 64, "run_a")

    def test_two_tenants_have_their_own_keys(
        self, sql: Statements, connection: Connection, make_run: MakeRun
    ) -> None:
        sql.save_run(connection, make_run(), ("key", "b" * 64))
        sql.save_run(connection, make_run("run_b", tenant="bob"), ("key", "d" * 64))
        assert sql.find_idempotent(connection, "bob", "key", NOON) == ("d" * 64, "run_b")

    def test_a_claim_past_its_time_can_be_taken(
        self, sql: Statements, connection: Connection, make_run: MakeRun
    ) -> None:
        sql.save_run(connection, make_run(), ("key", "b" * 64))
        late = make_run("run_b", created_at=NOON + DAY + SECOND)
        sql.save_run(connection, late, ("key", "d" * 64))
        assert sql.find_idempotent(connection, "ann", "key", NOON) == ("d" * 64, "run_b")

    def test_old_claims_expire_and_their_runs_stay(
        self, sql: Statements, connection: Connection, make_run: MakeRun
    ) -> None:
        for number in range(3):
            run = make_run(f"run_{number}", created_at=NOON + number * SECOND)
            sql.save_run(connection, run, (f"key{number}", "b" * 64))
        assert sql.expire_idempotency(connection, NOON + 2 * SECOND, 1) == 1
        assert sql.find_idempotent(connection, "ann", "key0", NOON) is None
        assert sql.expire_idempotency(connection, NOON + 2 * SECOND, 9) == 1
        assert sql.find_idempotent(connection, "ann", "key2", NOON) is not None
        assert len(page(sql, connection)[0]) == 3


class TestFiles:
    def test_a_file_is_its_tenants_and_found_by_id_alone(
        self, sql: Statements, connection: Connection, make_file: MakeFile
    ) -> None:
        file = make_file(expires_at=NOON + DAY)
        sql.save_file(connection, file)
        assert sql.get_file(connection, "ann", "file_a") == file
        assert sql.get_file(connection, "bob", "file_a") is None
        assert sql.find_file(connection, "file_a") == file
        assert sql.find_file(connection, "file_b") is None

    def test_another_tenants_file_is_never_overwritten(
        self, sql: Statements, connection: Connection, make_file: MakeFile
    ) -> None:
        sql.save_file(connection, make_file())
        with pytest.raises(Conflict):
            sql.save_file(connection, make_file(tenant="bob", sha256="b" * 64))
        assert sql.find_file(connection, "file_a") == make_file()

    def test_files_are_listed_by_page_and_purpose(
        self, sql: Statements, connection: Connection, make_file: MakeFile
    ) -> None:
        for number in range(3):
            purpose = "upload" if number else "artifact"
            created = NOON + number * SECOND
            sql.save_file(
                connection, make_file(f"file_{number}", purpose=purpose, created_at=created)
            )
        first, more = sql.list_files(connection, "ann", 2, None, None)
        assert [file.id for file in first] == ["file_2", "file_1"]
        assert more
        rest, more = sql.list_files(connection, "ann", 2, "file_1", None)
        assert [file.id for file in rest] == ["file_0"]
        assert not more
        uploads, _ = sql.list_files(connection, "ann", 9, None, "upload")
        assert [file.id for file in uploads] == ["file_2", "file_1"]
        with pytest.raises(InvalidRequest, match="file"):
            sql.list_files(connection, "bob", 2, "file_1", None)

    def test_only_the_owner_deletes(
        self, sql: Statements, connection: Connection, make_file: MakeFile
    ) -> None:
        sql.save_file(connection, make_file())
        assert not sql.delete_file(connection, "bob", "file_a")
        assert sql.delete_file(connection, "ann", "file_a")
        assert not sql.delete_file(connection, "ann", "file_a")

    def test_files_whose_time_is_over_expire(
        self, sql: Statements, connection: Connection, make_file: MakeFile
    ) -> None:
        for number in range(3):
            sql.save_file(
                connection, make_file(f"file_{number}", expires_at=NOON + number * SECOND)
            )
        sql.save_file(connection, make_file("file_kept"))
        assert sql.expire_files(connection, NOON + SECOND, 1) == 1
        assert sql.find_file(connection, "file_0") is None
        assert sql.expire_files(connection, NOON + SECOND, 9) == 1
        left = [file.id for file in sql.list_files(connection, "ann", 9, None, None)[0]]
        assert left == ["file_kept", "file_2"]

    def test_referenced_are_the_objects_that_some_row_names(
        self, sql: Statements, connection: Connection, make_file: MakeFile
    ) -> None:
        names = [f"{number:064x}" for number in range(1_200)]
        for number in (0, 700, 1_199):
            sql.save_file(connection, make_file(f"file_{number}", sha256=names[number]))
        sql.save_file(connection, make_file("file_again", tenant="bob", sha256=names[0]))
        assert sql.referenced(connection, names) == {names[0], names[700], names[1_199]}
        assert sql.referenced(connection, []) == set()
