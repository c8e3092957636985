"""The scripts behind ``make up`` and ``make down``, in a copy with a stand-in for the service."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAND_IN = "#!/bin/sh\necho started\nexec sleep 60\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """A directory with the scripts and a program that only sleeps in the service's place."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    service = tmp_path / ".venv" / "bin" / "code-executor"
    service.parent.mkdir(parents=True)
    service.write_text(STAND_IN)
    service.chmod(0o755)
    yield tmp_path
    _bash(tmp_path, "! find_service || stop_service")


def _bash(checkout: Path, commands: str, **environment: str) -> subprocess.CompletedProcess[str]:
    prelude = "set -euo pipefail; source scripts/lib.sh; source scripts/service.sh; "
    return subprocess.run(
        ["bash", "-c", prelude + commands],
        cwd=checkout,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _run_file(checkout: Path) -> list[str]:
    return (checkout / ".data" / "service.run").read_text().split()


def _wait_for(path: Path, text: str) -> None:
    end = time.monotonic() + 10
    while text not in path.read_text() and time.monotonic() < end:
        time.sleep(0.02)
    assert text in path.read_text()


def _has_ended(pid: int) -> bool:
    """Gone, or waiting for a slow PID 1 to take note."""
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(") ")[2].startswith("Z")


def test_a_service_is_started_found_and_stopped(checkout: Path) -> None:
    started = _bash(checkout, "SERVICE_URL=http://127.0.0.1:1; start_service; find_service")
    assert started.returncode == 0, started.stderr
    pid = int(_run_file(checkout)[0])
    assert os.getsid(pid) == pid  # its own session: the terminal's signals do not reach it
    _wait_for(checkout / ".data" / "service.log", "started")
    assert (checkout / ".data").stat().st_mode & 0o077 == 0

    stopped = subprocess.run(
        ["scripts/down.sh"], cwd=checkout, capture_output=True, text=True, check=True
    )
    assert stopped.stdout == f"stopped (pid {pid})\n"
    assert _has_ended(pid)


def test_stopping_what_does_not_run_is_no_error(checkout: Path) -> None:
    done = subprocess.run(
        ["scripts/down.sh"], cwd=checkout, capture_output=True, text=True, check=True
    )
    assert done.stdout == "not running\n"


def test_a_foreign_process_with_the_recorded_number_is_left_alone(checkout: Path) -> None:
    foreign = subprocess.Popen(["sleep", "60"])
    try:
        (checkout / ".data").mkdir()
        (checkout / ".data" / "service.run").write_text(f"{foreign.pid} 1 http://127.0.0.1:1 x\n")
        assert _bash(checkout, "find_service").returncode == 1
        subprocess.run(["scripts/down.sh"], cwd=checkout, capture_output=True, check=True)
        assert foreign.poll() is None
    finally:
        foreign.send_signal(signal.SIGKILL)
        foreign.wait()


def test_a_new_build_is_noticed(checkout: Path) -> None:
    before = _bash(checkout, "installed").stdout
    (checkout / ".venv" / ".stamp").write_text("another")
    after = _bash(checkout, "installed").stdout
    assert before
    assert before != after


def test_a_failed_step_shows_the_end_of_its_log_and_its_status(checkout: Path) -> None:
    done = _bash(checkout, "step 'doing it' it bash -c 'echo the reason >&2; exit 7'")
    assert done.returncode == 7
    assert "doing it failed" in done.stderr
    assert "the reason" in done.stderr


def test_a_step_keeps_its_output_to_the_log(checkout: Path) -> None:
    done = _bash(checkout, "step 'doing it' it echo hello")
    assert done.returncode == 0
    assert "hello" not in done.stdout
    assert (checkout / ".cache" / "logs" / "it.log").read_text() == "hello\n"


def test_a_stamp_holds_until_the_inputs_change(checkout: Path) -> None:
    done = _bash(
        checkout,
        "echo 1 >input; stamp mark $(hash_of input); stamped mark $(hash_of input) && echo same; "
        "echo 2 >input; stamped mark $(hash_of input) || echo changed",
    )
    assert done.stdout.split() == ["same", "changed"]


def test_what_is_made_alike_everywhere_has_one_stamp(checkout: Path) -> None:
    says = "echo 1 >input; hash_of input; contents_of input"
    here, there = (_bash(at, says).stdout.split() for at in (checkout, _another(checkout, "other")))
    assert here[0] != there[0]
    assert here[1] == there[1]


def _made(checkout: Path, cache: Path, stamp: str, *, keeping: str = "1", make: str = "") -> str:
    """What a runtime consists of that ``make`` fills, which is told of by "built"."""
    fill = make or "echo whole >.runtime/x/it"
    done = _bash(
        checkout,
        f"source scripts/runtimes.sh; KEEPING={keeping}; "
        f"build() {{ echo built && mkdir -p .runtime/x && {fill}; }}; "
        f"made x {stamp} build && stamped .runtime/x/.stamp {stamp} && cat .runtime/x/it",
        XDG_CACHE_HOME=str(cache),
    )
    return " ".join(done.stdout.split())


def _another(checkout: Path, name: str) -> Path:
    other = checkout / name
    shutil.copytree(ROOT / "scripts", other / "scripts")
    return other


def test_what_one_checkout_has_built_another_of_the_same_copies(checkout: Path) -> None:
    cache, other = checkout / "cache", _another(checkout, "other")
    assert _made(checkout, cache, "one") == "built whole"
    (checkout / ".runtime/x/it").write_text("changed since")
    assert _made(other, cache, "one") == "whole"
    assert _made(other, cache, "two", make="echo new >.runtime/x/it") == "built new"
    assert _made(_another(checkout, "third"), cache, "one") == "whole"


def test_who_keeps_nothing_takes_nothing(checkout: Path) -> None:
    cache = checkout / "cache"
    assert _made(checkout, cache, "one", keeping="") == "built whole"
    assert not cache.exists()
    assert _made(checkout, cache, "one") == "built whole"
    assert _made(_another(checkout, "other"), cache, "one", keeping="") == "built whole"


def test_what_failed_is_not_kept(checkout: Path) -> None:
    cache = checkout / "cache"
    assert _made(checkout, cache, "one", make="echo half >.runtime/x/it && false") == "built"
    assert _made(_another(checkout, "other"), cache, "one") == "built whole"


def test_what_is_kept_but_not_whole_is_built(checkout: Path) -> None:
    (checkout / "cache/code-executor/runtimes/x-one").mkdir(parents=True)
    assert _made(checkout, checkout / "cache", "one") == "built whole"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:9999"),
        ("0.0.0.0", "http://127.0.0.1:9999"),
        ("::", "http://127.0.0.1:9999"),
        ("::1", "http://[::1]:9999"),
    ],
)
def test_the_address_is_one_that_a_client_here_reaches(host: str, url: str) -> None:
    assert _first_run("url", HOST=host, PORT="9999").stdout == f"{url}\n"


def test_settings_that_cannot_be_used_are_named() -> None:
    done = _first_run("url", PORT="99999")
    assert done.returncode == 1
    assert "PORT" in done.stderr


def test_waiting_ends_when_the_service_has_gone() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    begun = time.monotonic()
    done = _first_run("ready", "http://127.0.0.1:1", "--pid", str(gone.pid), "--seconds", "60")
    assert done.returncode == 1
    assert time.monotonic() - begun < 20


def test_nobody_at_the_address_is_not_healthy() -> None:
    assert _first_run("health", "http://127.0.0.1:1").returncode == 1


def _first_run(*args: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "first_run.py"), *args],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
