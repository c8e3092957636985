"""``run``: what was typed becomes a request; how it ended becomes an exit code."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from code_executor.cli.run import Wanted, exit_code, make_request, run
from code_executor.config import BadSettings, Settings
from code_executor.errors import SandboxUnavailable
from code_executor.model import (
    ArtifactFile,
    InputFile,
    LimitHit,
    Outcome,
    Output,
    RunStatus,
    Skipped,
    SourceFile,
)
from code_executor.ports import Haste
from code_executor.sandbox.fake import FakeBackend

SETTINGS = Settings.load(sandbox_backend="fake")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "p.py"
    path.write_text("print(1)")
    return path


def answered(monkeypatch: pytest.MonkeyPatch, outcome: Outcome) -> None:
    async def answer(self: FakeBackend, plan: object) -> Outcome:
        return outcome

    monkeypatch.setattr(FakeBackend, "answer", answer)


def test_what_was_typed_becomes_the_request(program: Path, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("stdin")
    (tmp_path / "d.csv").write_bytes(b"\xff")
    request = make_request(
        SETTINGS,
        Wanted(
            file=program,
            args=("-x",),
            stdin=tmp_path / "in",
            files=(str(tmp_path / "d.csv"), f"sub/e=={tmp_path}".replace("==", "=") + "/d.csv"),
            sources=(f"lib/m.py={program}",),
            env=("A=b=c",),
            limits={"timeout_ms": 7, "cpu_ms": None},
        ),
    )
    assert (request.language, request.code, request.args) == ("python", "print(1)", ("-x",))
    assert (request.stdin, request.env) == ("stdin", (("A", "b=c"),))
    assert request.files == (
        InputFile("d.csv", content=b"\xff"),
        InputFile("sub/e", content=b"\xff"),
    )
    assert request.sources == (SourceFile("lib/m.py", b"print(1)"),)
    assert (request.limits.timeout_ms, request.limits.cpu_ms) == (7, 5000)


def test_ones_own_standard_input_is_passed_on_request(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("typed"))
    assert make_request(SETTINGS, Wanted(program)).stdin == ""
    assert make_request(SETTINGS, Wanted(program, stdin=Path("-"))).stdin == "typed"


@pytest.mark.parametrize(
    ("name", "language", "expected"),
    [
        ("a.rb", None, "ruby"),
        ("a.MJS", None, "node"),
        ("a", "golang", "go"),
        ("a.py", "php", "php"),
    ],
)
def test_the_language_is_told_or_typed(
    tmp_path: Path, name: str, language: str | None, expected: str
) -> None:
    (tmp_path / name).touch()
    assert make_request(SETTINGS, Wanted(tmp_path / name, language=language)).language == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"language": "cobol"}, "--language cobol: there are go, node"),
        ({"env": ("A",)}, "--env A: must be NAME=VALUE"),
        ({"files": ("/nonexistent",)}, "/nonexistent cannot be read"),
        ({"files": ("../x=/etc/hostname",)}, "must be a relative path"),
        ({"sources": ("/x=/etc/hostname",)}, "must be a relative path"),
        ({"limits": {"memory_mb": 100_000}}, "--memory-mb is 100000; it must be from 1 to 512"),
        ({"limits": {"timeout_ms": 0}}, "--timeout-ms is 0"),
    ],
)
def test_a_mistake_is_named(program: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSettings, match=message):
        make_request(SETTINGS, Wanted(program, **given))


def test_a_program_of_no_known_kind_needs_its_language(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_bytes(b"\xff")
    with pytest.raises(BadSettings, match=r"a\.xyz: say --language"):
        make_request(SETTINGS, Wanted(tmp_path / "a.xyz"))
    with pytest.raises(BadSettings, match="not UTF-8"):
        make_request(SETTINGS, Wanted(tmp_path / "a.xyz", language="python"))


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Outcome(RunStatus.SUCCEEDED, exit_code=0), 0),
        (Outcome(RunStatus.FAILED, exit_code=3), 3),
        (Outcome(RunStatus.FAILED, signal="SIGSEGV"), 139),
        (Outcome(RunStatus.FAILED, signal="SIG35"), 137),
        (Outcome(RunStatus.TIMEOUT), 124),
        (Outcome(RunStatus.OOM, exit_code=1), 137),
        (Outcome(RunStatus.KILLED), 137),
    ],
)
def test_the_exit_code_stands_for_the_end(outcome: Outcome, code: int) -> None:
    assert exit_code(outcome) == code


def test_output_is_passed_on_byte_for_byte(
    program: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    outcome = Outcome(
        RunStatus.TIMEOUT,
        limit_hit=LimitHit.CPU,
        stdout=Output(b"\xff\n", 2),
        stderr=Output(b"err\n", 4),
        skipped=(Skipped("big", "too large"),),
    )
    answered(monkeypatch, outcome)
    assert run(SETTINGS, Wanted(program)) == 124
    said = capfdbinary.readouterr()
    assert said.out == b"\xff\n"
    assert said.err.splitlines()[-3:] == [
        b"err",
        b"code-executor: timeout cpu_ms",
        b"code-executor: outputs/big left out: too large",
    ]


def test_what_it_left_is_kept_and_no_name_leads_outside(
    program: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = ["a/b.txt", "../outside", "/absolute", "c"]
    left = tuple(ArtifactFile(name, name.encode()) for name in names)
    answered(monkeypatch, Outcome(RunStatus.SUCCEEDED, exit_code=0, artifacts=left))
    assert run(SETTINGS, Wanted(program, out=tmp_path / "out")) == 0
    kept = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*")}
    assert kept == {"a", "a/b.txt", "c"}
    assert not (tmp_path / "outside").exists()


def test_a_sandbox_that_cannot_be_made_is_told_apart(
    program: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def prepare(self: FakeBackend, flavour: str, haste: Haste | None = None) -> None:
        raise SandboxUnavailable("No sandbox.", step="clone")

    monkeypatch.setattr(FakeBackend, "prepare", prepare)
    assert run(SETTINGS, Wanted(program)) == 125
    assert "No sandbox. (step: clone)" in capsys.readouterr().err
