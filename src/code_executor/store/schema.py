"""The tables, once, for every engine.

Times are integers, microseconds since 1970 in UTC: exact, compact, and in order wherever they are
compared. Columns exist for what is searched by; the rest of a run is one JSON document, so a new
field of a run needs no migration. A program's output is bytes, because text columns cannot hold
NUL everywhere, and comes last, because SQLite reads a row's columns from the left.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)

UNFINISHED = text("status IN ('queued', 'running')")
"""Literal on purpose: SQLite uses a partial index only for the very condition it was made with."""

FINISHED = text("status NOT IN ('queued', 'running')")

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

runs = Table(
    "runs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("language", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("document", Text, nullable=False),
    Column("stdout", LargeBinary, nullable=False),
    Column("stderr", LargeBinary, nullable=False),
    Index(None, "tenant", "created_at", "id"),
    Index(None, "tenant", "status", "created_at", "id"),
    Index(None, "tenant", "language", "created_at", "id"),
    Index(None, "created_at"),
    Index(
        "ix_runs_unfinished",
        "created_at",
        "id",
        sqlite_where=UNFINISHED,
        postgresql_where=UNFINISHED,
    ),
)

files = Table(
    "files",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("run_id", ForeignKey("runs.id", ondelete="CASCADE"), index=True),
    Column("sha256", Text, nullable=False, index=True),
    Column("size", BigInteger, nullable=False),
    Column("name", Text, nullable=False),
    Column("content_type", Text, nullable=False),
    Index(None, "tenant", "created_at", "id"),
    Index(None, "tenant", "purpose", "created_at", "id"),
    Index(None, "expires_at"),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("body_sha256", Text, nullable=False),
    Column("run_id", ForeignKey("runs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("created_at", BigInteger, nullable=False, index=True),
)
