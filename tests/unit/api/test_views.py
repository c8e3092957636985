from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from code_executor.api import schemas, views
from code_executor.model import (
    DEFAULT_LIMITS,
    MAXIMUM_LIMITS,
    LanguageStatus,
    LimitHit,
    Phase,
    Promise,
    Run,
    RunStatus,
    Skipped,
    StoredFile,
    Usage,
)

NOW = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)
FILE = StoredFile("file_1", "t", "d/a.png", 3, "ab" * 32, "image/png", "artifact", NOW)
RUN = Run(
    "run_1", "t", "go", RunStatus.TIMEOUT, "cd" * 32, DEFAULT_LIMITS, NOW,
    metadata=(("k", "v"),), attempts=2, signal="SIGKILL", phase=Phase.COMPILE,
    limit_hit=LimitHit.WALL, reason="why", stdout="out", stderr="err", stdout_truncated=True,
    usage=Usage(1, 2, 3, 4, 5, 6, 7), artifacts=(FILE,), skipped=(Skipped("x", "link", 9),),
    started_at=NOW,
)  # fmt: skip


def link(file: StoredFile) -> tuple[str, datetime]:
    return f"https://x/{file.id}", NOW


def test_the_run_object_is_the_contract_s() -> None:
    assert views.run_view(RUN, link) == {
        "id": "run_1",
        "object": "run",
        "status": "timeout",
        "language": "go",
        "exit_code": None,
        "signal": "SIGKILL",
        "phase": "compile",
        "limit_hit": "timeout_ms",
        "reason": "why",
        "stdout": "out",
        "stderr": "err",
        "stdout_truncated": True,
        "stderr_truncated": False,
        "usage": {
            "wall_ms": 1,
            "cpu_ms": 2,
            "max_rss_mb": 3,
            "compile_ms": 4,
            "queue_ms": 5,
            "prepare_ms": 6,
            "output_bytes": 7,
        },
        "artifacts": [
            {
                "id": "file_1",
                "name": "d/a.png",
                "size": 3,
                "sha256": "ab" * 32,
                "content_type": "image/png",
                "url": "https://x/file_1",
                "expires_at": "2026-01-31T12:00:00.123Z",
            }
        ],
        "artifacts_skipped": [{"name": "x", "reason": "link", "size": 9}],
        "limits": {
            "timeout_ms": 5_000,
            "cpu_ms": 5_000,
            "memory_mb": 256,
            "max_output_bytes": 1_048_576,
            "max_artifact_bytes": 5_242_880,
            "max_artifact_files": 10,
        },
        "metadata": {"k": "v"},
        "code_sha256": "cd" * 32,
        "attempts": 2,
        "created_at": "2026-01-31T12:00:00.123Z",
        "started_at": "2026-01-31T12:00:00.123Z",
        "finished_at": None,
    }


LANGUAGE = views.language_view(
    LanguageStatus("go", "Go", "main.go", False, None, "not installed"),
    DEFAULT_LIMITS,
    MAXIMUM_LIMITS,
)


@pytest.mark.parametrize(
    ("schema", "view"),
    [
        (schemas.RunObject, views.run_view(RUN, link)),
        (schemas.FileObject, views.file_view(FILE)),
        (schemas.LanguageObject, LANGUAGE),
        (schemas.PromiseObject, views.promise_view(Promise("P1", "t", kept=True, evidence="e"))),
        (schemas.DeletedObject, views.deleted_view("file", "file_1")),
        (schemas.FileList, views.list_view([views.file_view(FILE)], has_more=False)),
        (schemas.RunList, views.list_view([], has_more=False)),
    ],
)
def test_what_is_answered_is_what_is_documented(schema: Any, view: dict[str, Any]) -> None:
    assert set(view) == set(schema.model_fields)
    schema.model_validate(view)


def test_a_file_s_time_is_unix_seconds() -> None:
    assert views.file_view(FILE)["created_at"] == 1_769_860_800


def test_times_are_utc_with_milliseconds() -> None:
    assert views.time_view(NOW) == "2026-01-31T12:00:00.123Z"
    assert views.time_view(None) is None
    elsewhere = NOW.astimezone(timezone(timedelta(hours=2)))
    assert views.time_view(elsewhere) == "2026-01-31T12:00:00.123Z"
