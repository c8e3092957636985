"""``check`` and ``languages``: the report as a table and as JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from code_executor.cli.check import as_data, check, list_languages
from code_executor.compose import Report
from code_executor.config import Settings
from code_executor.errors import HostUnfit
from code_executor.model import LanguageStatus, Promise

SETTINGS = Settings.load(sandbox_backend="fake")
BROKEN = Promise("P4", "memory [is] bounded", False, "no cgroup", fix="mount -t cgroup2 …")


def found(monkeypatch: pytest.MonkeyPatch, report: Report) -> None:
    async def examine(settings: Settings, *, full: bool = False) -> Report:
        return report

    monkeypatch.setattr("code_executor.cli.check.examine", examine)


def test_a_broken_promise_is_shown_with_its_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found(monkeypatch, Report([BROKEN], [LanguageStatus("go", "Go", "main.go", False, reason="x")]))
    assert check(SETTINGS, full=False, as_json=False) is False
    said = capsys.readouterr().out
    assert "[is]" in said
    assert "P4: fix: mount -t cgroup2" in said
    assert "broken" in said


def test_what_the_service_can_do_without_is_named_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    languages = [
        LanguageStatus("go", "Go", "main.go", False, reason="apt-get install golang-go"),
        LanguageStatus("php", "PHP", "main.php", True),
    ]
    found(monkeypatch, Report([replace(BROKEN, waived=True)], languages))
    assert check(SETTINGS, full=False, as_json=False) is True
    said = " ".join(capsys.readouterr().out.split())
    assert "Programs can be run, but go is not available, P4 is waived." in said
    assert "All is well" not in said


def test_a_host_that_cannot_start_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found(monkeypatch, Report(problem=HostUnfit("too old", fix="boot a newer kernel")))
    assert check(SETTINGS, full=False, as_json=False) is False
    assert "fix: boot a newer kernel" in capsys.readouterr().out
    with pytest.raises(HostUnfit):
        list_languages(SETTINGS, as_json=False)


def test_failures_of_the_conformance_suite_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found(monkeypatch, Report(conformance=[("P3", "it ends", None), ("P5", "links", "followed")]))
    assert check(SETTINGS, full=True, as_json=False) is False
    said = capsys.readouterr().out
    assert "P3 ✓ it ends" in said
    assert "P5 ✗ followed: links" in said


def test_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(SETTINGS, full=False, as_json=True) is True
    data: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (data["ok"], data["problem"]) == (True, None)
    assert "python" in [language["id"] for language in data["languages"]]


def test_a_report_with_a_problem_is_plain_data() -> None:
    data = as_data(Report([BROKEN], problem=HostUnfit("too old", fix="newer")))
    assert data["problem"] == {"message": "too old", "fix": "newer"}
    assert data["promises"][0]["kept"] is False


def test_languages_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    list_languages(SETTINGS, as_json=True)
    assert {"go", "python"} <= {entry["id"] for entry in json.loads(capsys.readouterr().out)}
