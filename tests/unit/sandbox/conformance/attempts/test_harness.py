"""The attempts' own tools, tried where nothing holds them back: in this process."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from code_executor.sandbox.conformance.attempts import harness
from code_executor.sandbox.conformance.attempts.harness import Attempt, Reached


def test_refused_wants_a_refusal() -> None:
    def fail(code: int) -> None:
        raise OSError(code, "no")

    with harness.refused("opened"):
        fail(errno.EPERM)
    with pytest.raises(Reached, match="opened"), harness.refused("opened"):
        pass
    with pytest.raises(Reached, match="ENOENT"), harness.refused("opened", errno.EPERM):
        fail(errno.ENOENT)


def test_absent_and_unreadable(tmp_path: Path) -> None:
    file = tmp_path / "file"
    harness.absent(str(file))
    harness.unreadable(str(file), str(tmp_path))
    file.write_text("x")
    with pytest.raises(Reached):
        harness.absent(str(file))
    with pytest.raises(Reached):
        harness.unreadable(str(file))
    with pytest.raises(Reached):
        harness.unreadable(str(tmp_path))


def test_a_call_that_reaches_the_kernel_is_noticed() -> None:
    """Outside a sandbox the kernel looks at the arguments: EBADF, not EPERM."""
    with pytest.raises(Reached, match="setns"):
        harness.forbidden("setns", -1, 0)


def test_what_proc_does_not_show_is_asked_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {name: harness.status(name) for name in ("NoNewPrivs", "Seccomp")}

    def nothing(name: str) -> str:
        raise KeyError(name)

    monkeypatch.setattr(harness, "status_line", nothing)
    assert {name: harness.status(name) for name in shown} == shown
    assert harness.status("CapAmb") == "0"
    with pytest.raises(KeyError):
        harness.status("CapEff")


def test_status_lines() -> None:
    assert harness.status_line("Pid") == str(os.getpid())


@pytest.mark.parametrize(
    ("error", "held"),
    [(None, True), (Reached("it"), False), (RuntimeError("bug"), False)],
)
def test_reports(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception | None,
    held: bool,
) -> None:
    def body() -> None:
        if error is not None:
            raise error

    item = Attempt("mine", "Try", "P1", quick=False, body=body)
    monkeypatch.setattr(harness, "ATTEMPTS", {"mine": item})
    monkeypatch.setattr("sys.argv", ["main.py", "mine"])
    harness.main()
    told = json.loads(capsys.readouterr().out)
    assert (told["name"], told["held"]) == ("mine", held)
