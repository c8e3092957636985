"""Values → the wire's JSON objects, field by field as the contract names them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from code_executor.model import (
    LanguageStatus,
    Limits,
    Promise,
    Run,
    Skipped,
    StoredFile,
    Usage,
)

Json = dict[str, Any]
_LIMITS = Limits.names()
LinkMaker = Callable[[StoredFile], tuple[str, datetime]]


def run_view(run: Run, link: LinkMaker) -> Json:
    """The run object; the artifacts' links are signed by ``link`` as it is called."""
    return {
        "id": run.id,
        "object": "run",
        "status": run.status.value,
        "language": run.language,
        "exit_code": run.exit_code,
        "signal": run.signal,
        "phase": run.phase.value,
        "limit_hit": run.limit_hit.value if run.limit_hit else None,
        "reason": run.reason,
        "stdout": run.stdout,
        "stderr": run.stderr,
        "stdout_truncated": run.stdout_truncated,
        "stderr_truncated": run.stderr_truncated,
        "usage": usage_view(run.usage),
        "artifacts": [artifact_view(file, link) for file in run.artifacts],
        "artifacts_skipped": [skipped_view(entry) for entry in run.skipped],
        "limits": limits_view(run.limits),
        "metadata": dict(run.metadata),
        "code_sha256": run.code_sha256,
        "attempts": run.attempts,
        "created_at": time_view(run.created_at),
        "started_at": time_view(run.started_at),
        "finished_at": time_view(run.finished_at),
    }


def usage_view(usage: Usage) -> Json:
    """What the run used."""
    return {
        "wall_ms": usage.wall_ms,
        "cpu_ms": usage.cpu_ms,
        "max_rss_mb": usage.max_rss_mb,
        "compile_ms": usage.compile_ms,
        "queue_ms": usage.queue_ms,
        "prepare_ms": usage.prepare_ms,
        "output_bytes": usage.output_bytes,
    }


def limits_view(limits: Limits) -> Json:
    """The limits by name."""
    return {name: getattr(limits, name) for name in _LIMITS}


def artifact_view(file: StoredFile, link: LinkMaker) -> Json:
    """A file that a run made, with a link signed now."""
    url, expires_at = link(file)
    return {
        "id": file.id,
        "name": file.name,
        "size": file.size,
        "sha256": file.sha256,
        "content_type": file.content_type,
        "url": url,
        "expires_at": time_view(expires_at),
    }


def skipped_view(entry: Skipped) -> Json:
    """A thing under ``outputs/`` that was left out."""
    return {"name": entry.name, "reason": entry.reason, "size": entry.size}


def file_view(file: StoredFile) -> Json:
    """The file object; ``filename`` and ``bytes`` are what OpenAI's clients read."""
    return {
        "id": file.id,
        "object": "file",
        "name": file.name,
        "filename": file.name,
        "size": file.size,
        "bytes": file.size,
        "sha256": file.sha256,
        "content_type": file.content_type,
        "purpose": file.purpose,
        "created_at": int(file.created_at.timestamp()),
    }


def list_view(data: Sequence[Json], *, has_more: bool) -> Json:
    """One page of a list."""
    return {
        "object": "list",
        "data": list(data),
        "has_more": has_more,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }


def deleted_view(kind: str, object_id: str) -> Json:
    """What remains of a deleted object."""
    return {"id": object_id, "object": kind, "deleted": True}


def language_view(language: LanguageStatus, defaults: Limits, maxima: Limits) -> Json:
    """A language as this host has it."""
    return {
        "id": language.id,
        "object": "language",
        "name": language.name,
        "aliases": list(language.aliases),
        "version": language.version,
        "file_name": language.file_name,
        "available": language.available,
        "reason": language.reason,
        "limits": {"default": limits_view(defaults), "maximum": limits_view(maxima)},
        "packages": list(language.packages),
    }


def promise_view(promise: Promise) -> Json:
    """One promise on this host."""
    return {
        "id": promise.id,
        "title": promise.title,
        "kept": promise.kept,
        "waived": promise.waived,
        "evidence": promise.evidence,
        "fix": promise.fix,
    }


def time_view(moment: datetime | None) -> str | None:
    """RFC 3339 in UTC with milliseconds: ``2026-01-31T12:00:00.000Z``."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
