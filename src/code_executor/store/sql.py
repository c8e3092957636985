"""Every statement on the records, for every engine that SQLAlchemy Core speaks to.

The methods of :class:`Statements` are plain functions of a synchronous connection inside a
transaction that somebody else begins and commits. Each can be run again from the start after a
rollback: it keeps nothing between calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol

from sqlalchemy import (
    Connection,
    Delete,
    Dialect,
    RowMapping,
    Select,
    Table,
    and_,
    delete,
    or_,
    select,
    tuple_,
)

from code_executor.errors import Conflict, InvalidRequest
from code_executor.model import Run, RunStatus, StoredFile
from code_executor.store.rows import (
    Row,
    artifact_ids,
    column_text,
    file_from,
    file_row,
    micros,
    run_from,
    run_row,
)
from code_executor.store.schema import FINISHED, UNFINISHED, files, idempotency, runs

_IN_CHUNK = 500
"""Values in one IN list; engines limit the parameters of a statement."""


class InsertFactory(Protocol):
    """``sqlalchemy.dialects.<engine>.insert``: an INSERT that has ``on_conflict_do_update``."""

    def __call__(self, table: Table) -> Any:
        """Any: each dialect has its own class, with nothing in common that is typed."""
        ...


class Statements:
    """The operations of ``ports.Records``, given a connection.

    ``claim_ttl`` is how long a claim on an idempotency key holds; ``page_bytes`` bounds the
    output held by one page of runs.
    """

    def __init__(self, insert: InsertFactory, *, claim_ttl: timedelta, page_bytes: int) -> None:
        self._claim_ttl = claim_ttl
        self._page_bytes = page_bytes
        self._save_run = _upsert(insert, runs, keep=("id", "tenant", "created_at"))
        self._save_file = _upsert(insert, files, keep=("id", "tenant", "created_at"))
        self._claim = insert(idempotency)

    def save_run_text(self, dialect: Dialect) -> str:
        """The first statement of :meth:`save_run` in the words of ``dialect``, for ``run_row``."""
        return str(self._save_run.compile(dialect=dialect))

    def save_run(
        self, connection: Connection, run: Run, claim: tuple[str, str] | None = None
    ) -> None:
        """Insert or replace the run and its artifacts' rows, and claim the idempotency key.

        Raises:
            Conflict: the key is another run's, or the run's id another tenant's.
        """
        _save(connection, self._save_run, run_row(run))
        for file in run.artifacts:
            self.save_file(connection, file)
        if claim is not None:
            self._claim_key(connection, run, *claim)

    def _claim_key(self, connection: Connection, run: Run, key: str, body_sha256: str) -> None:
        """Take the key when it is free, ours already, or claimed too long ago to count."""
        columns = ("body_sha256", "run_id", "created_at")
        stale = micros(run.created_at - self._claim_ttl)
        statement = self._claim.on_conflict_do_update(
            index_elements=["tenant", "key"],
            set_={name: self._claim.excluded[name] for name in columns},
            where=or_(
                idempotency.c.created_at < stale,
                idempotency.c.run_id == self._claim.excluded.run_id,
            ),
        )
        row = {
            "tenant": column_text(run.tenant),
            "key": column_text(key),
            "body_sha256": column_text(body_sha256),
            "run_id": column_text(run.id),
            "created_at": micros(run.created_at),
        }
        if connection.execute(statement, row).rowcount == 0:
            raise Conflict("This idempotency key belongs to another run.", param="Idempotency-Key")

    def find_idempotent(
        self, connection: Connection, tenant: str, key: str, since: datetime
    ) -> tuple[str, str] | None:
        """The claim on a key: the body's SHA-256 and the run id."""
        claim = idempotency.c
        row = connection.execute(
            select(claim.body_sha256, claim.run_id).where(
                claim.tenant == column_text(tenant),
                claim.key == column_text(key),
                claim.created_at >= micros(since),
            )
        ).one_or_none()
        return None if row is None else (row.body_sha256, row.run_id)

    def get_run(self, connection: Connection, tenant: str, run_id: str) -> Run | None:
        """One run with its artifacts."""
        row = connection.execute(_owned(runs, tenant, run_id)).mappings().one_or_none()
        return None if row is None else self._with_artifacts(connection, [row])[0]

    def list_runs(
        self,
        connection: Connection,
        tenant: str,
        limit: int,
        after: str | None,
        status: RunStatus | None,
        language: str | None,
    ) -> tuple[Sequence[Run], bool]:
        """One page, newest first, and whether more follow."""
        query = _page(connection, runs, tenant, limit, after)
        if status is not None:
            query = query.where(runs.c.status == status.value)
        if language is not None:
            query = query.where(runs.c.language == column_text(language))
        with connection.execute(query) as result:
            rows, more = self._bounded(result.mappings(), limit)
        return self._with_artifacts(connection, rows), more

    def unfinished_runs(self, connection: Connection) -> Sequence[Run]:
        """Every run that is queued or running, oldest first."""
        query = select(runs).where(UNFINISHED).order_by(runs.c.created_at, runs.c.id)
        return self._with_artifacts(connection, connection.execute(query).mappings().all())

    def delete_run(self, connection: Connection, tenant: str, run_id: str) -> bool:
        """Delete a run; its files and its claim follow by foreign key."""
        return _delete_owned(connection, runs, tenant, run_id)

    def save_file(self, connection: Connection, file: StoredFile) -> None:
        """Insert or replace a file row.

        Raises:
            Conflict: the id is another tenant's.
        """
        _save(connection, self._save_file, file_row(file))

    def get_file(self, connection: Connection, tenant: str, file_id: str) -> StoredFile | None:
        """One file of a tenant."""
        row = connection.execute(_owned(files, tenant, file_id)).mappings().one_or_none()
        return None if row is None else file_from(row)

    def find_file(self, connection: Connection, file_id: str) -> StoredFile | None:
        """One file of whatever tenant."""
        query = select(files).where(files.c.id == column_text(file_id))
        row = connection.execute(query).mappings().one_or_none()
        return None if row is None else file_from(row)

    def list_files(
        self,
        connection: Connection,
        tenant: str,
        limit: int,
        after: str | None,
        purpose: str | None,
    ) -> tuple[Sequence[StoredFile], bool]:
        """One page, newest first, and whether more follow."""
        query = _page(connection, files, tenant, limit, after)
        if purpose is not None:
            query = query.where(files.c.purpose == column_text(purpose))
        found = [file_from(row) for row in connection.execute(query).mappings()]
        return found[:limit], len(found) > limit

    def delete_file(self, connection: Connection, tenant: str, file_id: str) -> bool:
        """Delete one file row."""
        return _delete_owned(connection, files, tenant, file_id)

    def referenced(self, connection: Connection, sha256s: Sequence[str]) -> set[str]:
        """Which of the object names some file row points to."""
        found: set[str] = set()
        for start in range(0, len(sha256s), _IN_CHUNK):
            chunk = [column_text(name) for name in sha256s[start : start + _IN_CHUNK]]
            query = select(files.c.sha256).where(files.c.sha256.in_(chunk)).distinct()
            found.update(connection.execute(query).scalars())
        return found

    def expire_files(self, connection: Connection, now: datetime, limit: int) -> int:
        """Delete file rows whose time is over, the longest overdue first."""
        due = files.c.expires_at <= micros(now)
        oldest = select(files.c.id).where(due).order_by(files.c.expires_at).limit(limit)
        return _count(connection, delete(files).where(files.c.id.in_(oldest)))

    def expire_runs(self, connection: Connection, before: datetime, limit: int) -> int:
        """Delete finished runs created before a time, oldest first."""
        due = and_(runs.c.created_at < micros(before), FINISHED)
        oldest = select(runs.c.id).where(due).order_by(runs.c.created_at).limit(limit)
        return _count(connection, delete(runs).where(runs.c.id.in_(oldest)))

    def expire_idempotency(self, connection: Connection, before: datetime, limit: int) -> int:
        """Delete claims made before a time, oldest first."""
        claim = idempotency.c
        oldest = (
            select(claim.tenant, claim.key)
            .where(claim.created_at < micros(before))
            .order_by(claim.created_at)
            .limit(limit)
        )
        statement = delete(idempotency).where(tuple_(claim.tenant, claim.key).in_(oldest))
        return _count(connection, statement)

    def _bounded(self, rows: Iterable[RowMapping], limit: int) -> tuple[list[RowMapping], bool]:
        """Up to ``limit`` rows, fewer when their output is large; whether more follow."""
        kept: list[RowMapping] = []
        size = 0
        for row in rows:
            size += len(row["stdout"]) + len(row["stderr"])
            if len(kept) == limit or (kept and size > self._page_bytes):
                return kept, True
            kept.append(row)
        return kept, False

    def _with_artifacts(self, connection: Connection, rows: Sequence[RowMapping]) -> Sequence[Run]:
        """The runs of ``rows``; one more query when any of them has artifacts."""
        owners = [row["id"] for row in rows if artifact_ids(row)]
        found: dict[str | None, list[StoredFile]] = {}
        for start in range(0, len(owners), _IN_CHUNK):
            query = select(files).where(files.c.run_id.in_(owners[start : start + _IN_CHUNK]))
            for file in map(file_from, connection.execute(query).mappings()):
                found.setdefault(file.run_id, []).append(file)
        return [run_from(row, found.get(row["id"], ())) for row in rows]


def _upsert(insert: InsertFactory, table: Table, *, keep: tuple[str, ...]) -> Any:
    """INSERT a whole row; when the id is there, change everything but ``keep``.

    The tenant in the condition: no id, however come by, overwrites another tenant's row; the
    statement then touches no row at all.
    """
    statement = insert(table)
    changed = [column.name for column in table.columns if column.name not in keep]
    return statement.on_conflict_do_update(
        index_elements=["id"],
        set_={name: statement.excluded[name] for name in changed},
        where=table.c.tenant == statement.excluded.tenant,
    )


def _save(connection: Connection, upsert: Any, row: Row) -> None:
    if connection.execute(upsert, row).rowcount == 0:
        raise Conflict("This id is taken.")


def _owned(table: Table, tenant: str, row_id: str) -> Select[Any]:
    return select(table).where(
        table.c.id == column_text(row_id), table.c.tenant == column_text(tenant)
    )


def _delete_owned(connection: Connection, table: Table, tenant: str, row_id: str) -> bool:
    statement = delete(table).where(
        table.c.id == column_text(row_id), table.c.tenant == column_text(tenant)
    )
    return _count(connection, statement) > 0


def _page(
    connection: Connection, table: Table, tenant: str, limit: int, after: str | None
) -> Select[Any]:
    """A tenant's rows, newest first, from behind ``after``, with one more than ``limit``."""
    query = select(table).where(table.c.tenant == column_text(tenant))
    if after is not None:
        query = query.where(_behind(connection, table, tenant, after))
    return query.order_by(table.c.created_at.desc(), table.c.id.desc()).limit(limit + 1)


def _behind(connection: Connection, table: Table, tenant: str, after: str) -> Any:
    """The condition "older than the row ``after``"; Any, as SQLAlchemy types its own."""
    place = _owned(table, tenant, after).with_only_columns(table.c.created_at, table.c.id)
    row = connection.execute(place).one_or_none()
    if row is None:
        noun = table.name.removesuffix("s")
        raise InvalidRequest(f"after is not the id of a {noun} of yours.", param="after")
    return tuple_(table.c.created_at, table.c.id) < (row.created_at, row.id)


def _count(connection: Connection, statement: Delete) -> int:
    return connection.execute(statement).rowcount
