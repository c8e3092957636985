"""The life of ``code-executor serve`` as a process: ready, answering, draining, gone."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

READY = re.compile(r"Code Executor is ready at (http://\S+)")
START_S = 60


def environment(data: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "SANDBOX_BACKEND": "fake",
        "DATA_DIR": str(data),
        "LOG_LEVEL": "INFO",
    }


def command(*options: str) -> list[str]:
    program = "from code_executor.cli import main; main()"
    return [sys.executable, "-c", program, "serve", "--port", "0", *options]


@contextmanager
def service(data: Path, *before: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with (data.parent / "log").open("a") as log, subprocess.Popen(
        [*before, *command()], env=environment(data), stdout=subprocess.PIPE, stderr=log, text=True
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            yield process, address(process.stdout)
        finally:
            process.kill()


def address(stdout: IO[str]) -> str:
    match = READY.match(stdout.readline())
    assert match is not None
    return match[1]


def call(url: str, body: object = None) -> dict[str, object]:
    request = urllib.request.Request(
        url,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": "Bearer dev_123", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        found: dict[str, object] = json.load(answer)
        return found


def test_it_answers_and_ends_when_asked(tmp_path: Path) -> None:
    with service(tmp_path / "data") as (process, url):
        run = call(f"{url}/v1/runs", {"language": "python", "code": "print('ok')"})
        assert run["status"] == "succeeded"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [e["event"] for e in events if e.get("component") == "serve"] == [
        "serving",
        "draining",
        "stopped",
    ]


def test_too_few_open_files_for_a_full_pool_are_told_of(tmp_path: Path) -> None:
    with service(tmp_path / "data", "prlimit", "--nofile=512:1024") as (process, url):
        assert call(f"{url}/v1/health")
        limits = Path(f"/proc/{process.pid}/limits").read_text()
    assert re.search(r"Max open files +1024 +1024 ", limits)
    told = json.loads((tmp_path / "log").read_text().splitlines()[0])
    assert (told["event"], told["allowed"], told["wanted"]) == (
        "few open files allowed",
        1024,
        3060,
    )
    assert "LimitNOFILE=3060" in told["fix"]


def test_what_was_answered_survives_a_kill(tmp_path: Path) -> None:
    with service(tmp_path / "data") as (process, url):
        run = call(f"{url}/v1/runs", {"language": "python", "code": "print('ok')"})
        process.kill()
        process.wait(30)
    with service(tmp_path / "data") as (_, url):
        assert call(f"{url}/v1/runs/{run['id']}") == run


def test_a_second_one_on_the_same_data_says_so(tmp_path: Path) -> None:
    with service(tmp_path / "data"):
        done = subprocess.run(
            command(), env=environment(tmp_path / "data"), capture_output=True, text=True,
            timeout=START_S,
        )  # fmt: skip
    assert done.returncode == 1
    assert "code-executor: Another service uses the data directory" in done.stderr
    assert "fix: " in done.stderr
