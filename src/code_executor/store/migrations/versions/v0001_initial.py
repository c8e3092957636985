"""Runs, files and idempotency keys."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_UNFINISHED = sa.text("status IN ('queued', 'running')")


def upgrade() -> None:
    """Create the first tables."""
    _create_runs()
    _create_files()
    _create_idempotency()


def _create_runs() -> None:
    op.create_table(
        "runs",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("language", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("stdout", sa.LargeBinary, nullable=False),
        sa.Column("stderr", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
    )
    _index("runs", "tenant", "created_at", "id")
    _index("runs", "tenant", "status", "created_at", "id")
    _index("runs", "tenant", "language", "created_at", "id")
    _index("runs", "created_at")
    op.create_index(
        "ix_runs_unfinished",
        "runs",
        ["created_at", "id"],
        sqlite_where=_UNFINISHED,
        postgresql_where=_UNFINISHED,
    )


def _create_files() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("run_id", sa.Text),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("content_type", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_files"),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.id"], name="fk_files_run_id", ondelete="CASCADE"
        ),
    )
    _index("files", "tenant", "created_at", "id")
    _index("files", "tenant", "purpose", "created_at", "id")
    _index("files", "expires_at")
    _index("files", "run_id")
    _index("files", "sha256")


def _create_idempotency() -> None:
    op.create_table(
        "idempotency",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("body_sha256", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "key", name="pk_idempotency"),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.id"], name="fk_idempotency_run_id", ondelete="CASCADE"
        ),
    )
    _index("idempotency", "created_at")
    _index("idempotency", "run_id")


def _index(table: str, *columns: str) -> None:
    op.create_index("_".join(("ix", table, *columns)), table, list(columns))
