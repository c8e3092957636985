"""The command line: flags become settings, mistakes become messages and exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from code_executor import __version__, cli
from code_executor.config import BadSettings


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SANDBOX_BACKEND", "fake")
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["code-executor", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    code = ended.value.code
    return code if isinstance(code, int) else 0


@pytest.mark.parametrize(
    "words",
    [["--max-concurrency", "7"], ["--max-concurrency=7"], ["--max_concurrency=7"]],
)
def test_any_setting_is_an_option(words: list[str]) -> None:
    assert cli.read_settings(None, words).max_concurrency == 7


def test_an_option_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1111")
    assert cli.read_settings(None, [], port=2222).port == 2222
    assert cli.read_settings(None, []).port == 1111


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-concurency", "7"], "--max-concurency: there is no such option"),
        (["max-concurrency", "7"], "there is no such option"),
        (["--max-concurrency"], "--max-concurrency needs a value"),
        (["--max-concurrency=x"], "MAX_CONCURRENCY"),
        (["--api-keys=a:b"], "API_KEYS may hold a secret"),
        (["--signing-key", "x"], "SIGNING_KEY may hold a secret"),
    ],
)
def test_a_mistaken_option_is_named(words: list[str], message: str) -> None:
    with pytest.raises(BadSettings, match=message):
        cli.read_settings(None, words)


def test_a_mistake_in_the_settings_exits_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "check", "--port=x") == 2
    assert capsys.readouterr().err.startswith("code-executor: PORT: ")


def test_the_version_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"code-executor {__version__}\n"


def test_the_default_key_is_not_served_to_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "serve", "--host", "0.0.0.0", "--port", "0") == 2
    assert "API_KEYS" in capsys.readouterr().err


def test_a_program_is_run_and_its_arguments_are_its_own(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> None:
    (tmp_path / "p.py").write_text("print(1)")
    assert call(monkeypatch, "run", str(tmp_path / "p.py"), "--stdin", "-x") == 0
    assert capfdbinary.readouterr().out == b"ok\n"


def test_check_exits_with_0_when_all_is_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "check") == 0
    assert "All is well." in capsys.readouterr().out


def test_the_languages_are_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "languages") == 0
    assert "main.py" in capsys.readouterr().out
