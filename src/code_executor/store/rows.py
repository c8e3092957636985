"""Nouns to rows and back.

Every string is stored as Unicode scalar values: a lone surrogate, which no UTF-8 answer could
carry, becomes U+FFFD on the way in. NUL survives in a program's output (bytes) and in the JSON
document (escaped), and becomes U+FFFD in text columns, where PostgreSQL refuses it. Nothing that a
program prints or names can therefore make a save fail.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from pydantic_core import PydanticSerializationError, to_json

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

Row: TypeAlias = dict[str, object]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_JSON = json.JSONEncoder(ensure_ascii=False)
_SURROGATE = re.compile("[\ud800-\udfff]")
_LIMITS = tuple(f.name for f in fields(Limits))
_USAGE = tuple(f.name for f in fields(Usage))


def micros(when: datetime) -> int:
    """Microseconds since 1970, UTC, rounded down.

    Raises:
        TypeError: ``when`` has no time zone.
    """
    return (when - _EPOCH) // _MICROSECOND


def moment(value: int) -> datetime:
    """The inverse of ``micros``."""
    return _EPOCH + timedelta(microseconds=value)


def column_text(value: str) -> str:
    """``value`` as a text column can hold it, on every engine."""
    return _scalars(value).replace("\x00", "\ufffd")


def run_row(run: Run) -> Row:
    """The row of ``runs``; artifacts are rows of ``files``, and only their ids are in here."""
    return {
        "id": column_text(run.id),
        "tenant": column_text(run.tenant),
        "status": run.status.value,
        "language": column_text(run.language),
        "created_at": micros(run.created_at),
        "document": _json(_document(run)),
        "stdout": _encode(run.stdout),
        "stderr": _encode(run.stderr),
    }


def run_from(row: Mapping[Any, Any], artifacts: Iterable[StoredFile]) -> Run:
    """The run of ``row``, with those of its artifacts that are still there, in their order."""
    document = json.loads(row["document"])
    present = {column_text(artifact.id): artifact for artifact in artifacts}
    return Run(
        id=row["id"],
        tenant=row["tenant"],
        status=RunStatus(row["status"]),
        language=row["language"],
        created_at=moment(row["created_at"]),
        stdout=row["stdout"].decode(),
        stderr=row["stderr"].decode(),
        artifacts=tuple(present[name] for name in document["artifacts"] if name in present),
        **_from_document(document),
    )


def artifact_ids(row: Mapping[Any, Any]) -> list[str]:
    """The ids of the artifacts that a run row names, present or not."""
    ids: list[str] = json.loads(row["document"])["artifacts"]
    return ids


def file_row(file: StoredFile) -> Row:
    """The row of ``files``."""
    return {
        "id": column_text(file.id),
        "tenant": column_text(file.tenant),
        "purpose": column_text(file.purpose),
        "created_at": micros(file.created_at),
        "expires_at": _optional_micros(file.expires_at),
        "run_id": None if file.run_id is None else column_text(file.run_id),
        "sha256": column_text(file.sha256),
        "size": file.size,
        "name": column_text(file.name),
        "content_type": column_text(file.content_type),
    }


def file_from(row: Mapping[Any, Any]) -> StoredFile:
    """The file of ``row``."""
    return StoredFile(
        **{
            **row,
            "created_at": moment(row["created_at"]),
            "expires_at": _optional_moment(row["expires_at"]),
        }
    )


def _document(run: Run) -> Row:
    return {
        "code_sha256": run.code_sha256,
        "limits": {name: getattr(run.limits, name) for name in _LIMITS},
        "metadata": run.metadata,
        "attempts": run.attempts,
        "exit_code": run.exit_code,
        "signal": run.signal,
        "phase": run.phase,
        "limit_hit": run.limit_hit,
        "reason": run.reason,
        "stdout_truncated": run.stdout_truncated,
        "stderr_truncated": run.stderr_truncated,
        "usage": {name: getattr(run.usage, name) for name in _USAGE},
        "artifacts": [column_text(artifact.id) for artifact in run.artifacts],
        "skipped": [(item.name, item.reason, item.size) for item in run.skipped],
        "started_at": _optional_micros(run.started_at),
        "finished_at": _optional_micros(run.finished_at),
    }


def _from_document(document: Mapping[str, Any]) -> dict[str, Any]:
    hit = document["limit_hit"]
    return {
        "code_sha256": document["code_sha256"],
        "limits": Limits(**document["limits"]),
        "metadata": tuple((key, value) for key, value in document["metadata"]),
        "attempts": document["attempts"],
        "exit_code": document["exit_code"],
        "signal": document["signal"],
        "phase": Phase(document["phase"]),
        "limit_hit": None if hit is None else LimitHit(hit),
        "reason": document["reason"],
        "stdout_truncated": document["stdout_truncated"],
        "stderr_truncated": document["stderr_truncated"],
        "usage": Usage(**document["usage"]),
        "skipped": tuple(Skipped(*item) for item in document["skipped"]),
        "started_at": _optional_moment(document["started_at"]),
        "finished_at": _optional_moment(document["finished_at"]),
    }


def _optional_micros(when: datetime | None) -> int | None:
    return None if when is None else micros(when)


def _optional_moment(value: int | None) -> datetime | None:
    return None if value is None else moment(value)


def _json(document: Row) -> str:
    try:
        return to_json(document).decode()
    except PydanticSerializationError:  # a lone surrogate
        return _scalars(_JSON.encode(document))


def _encode(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        return _scalars(text).encode()


def _scalars(text: str) -> str:
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)
