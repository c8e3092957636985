"""End to end: a real service over HTTP, with the real sandbox, its end and its crash included."""

from __future__ import annotations

import base64
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.acceptance.service import (
    Run,
    Service,
    cgroups,
    descendants,
    footprint,
    serving,
    settle,
)

pytestmark = pytest.mark.sandbox
RUNS = int(os.environ.get("LEAK_RUNS", "200"))
"""Runs in a row of the leak test; 2000 for the long version."""

HELLO = {
    "python": "import sys; print('hello', sys.argv[1:], sys.stdin.read())",
    "node": "console.log('hello', process.argv.slice(2), require('fs').readFileSync(0, 'utf8'))",
    "ruby": 'puts "hello #{ARGV} #{$stdin.read}"',
    "php": "<?php echo 'hello ', $argv[1], ' ', stream_get_contents(STDIN), \"\\n\";",
    "go": 'package main\n\nimport (\n\t"fmt"\n\t"io"\n\t"os"\n)\n\n'
    'func main() { b, _ := io.ReadAll(os.Stdin); fmt.Println("hello", os.Args[1:], string(b)) }\n',
}

EMPTY = {"language": "python", "code": ""}
LEAVES_CHILDREN = """
import os, time
os.fork()
if os.fork() == 0: os.setsid()
time.sleep(0.01)
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("service") / "data") as running:
        yield running


@pytest.mark.parametrize("language", HELLO)
def test_every_language(service: Service, language: str) -> None:
    known = {item["id"]: item for item in service.client.get("/v1/languages").json()["data"]}
    if not known[language]["available"]:
        pytest.skip(f"{language}: {known[language]['reason']}")
    run = service.run(language, HELLO[language], args=["a b"], stdin="typed")
    assert (run["status"], run["exit_code"]) == ("succeeded", 0), run
    assert run["stdout"].startswith("hello ")
    assert "a b" in run["stdout"]
    assert run["stdout"].endswith("typed\n")


def test_it_is_ready_and_keeps_its_promises(service: Service) -> None:
    ready = service.client.get("/v1/ready")
    assert ready.status_code == 200, ready.text
    assert httpx.get(f"{service.url}/v1/health").json() == {"status": "ok"}


def test_environment_and_files(service: Service) -> None:
    upload = service.client.post("/v1/files", files={"file": ("numbers.txt", b"1\n2\n3\n")}).json()
    code = """
import os, pathlib
print(os.environ["WHO"], sum(map(int, open("inputs/up.txt"))), open("inputs/in/line.txt").read())
print(pathlib.Path("inputs/raw.bin").read_bytes())
"""
    files = [
        {"id": upload["id"], "path": "up.txt"},
        {"path": "in/line.txt", "content": "größe"},
        {"path": "raw.bin", "content": base64.b64encode(b"\0\xff").decode(), "encoding": "base64"},
    ]
    run = service.run("python", code, env={"WHO": "me"}, files=files)
    assert run["stdout"] == "me 6 größe\nb'\\x00\\xff'\n", run


def test_artifacts_through_a_signed_link(service: Service) -> None:
    code = """
import os
os.makedirs("outputs/deep")
open("outputs/deep/data.bin", "wb").write(bytes(range(256)))
os.symlink("/etc/passwd", "outputs/stolen")
"""
    run = service.run("python", code)
    (artifact,) = run["artifacts"]
    assert (artifact["name"], artifact["size"]) == ("deep/data.bin", 256)
    assert [item["name"] for item in run["artifacts_skipped"]] == ["stolen"]
    link = artifact["url"].replace(artifact["url"].split("/v1/")[0], service.url)
    answer = httpx.get(link)
    assert (answer.status_code, answer.content) == (200, bytes(range(256)))
    assert httpx.get(link.replace("sig=", "sig=A")).status_code == 403
    assert httpx.get(link.split("?")[0]).status_code in (401, 403)


@pytest.mark.parametrize(
    ("code", "limits", "expected"),
    [
        ("print(1)", {}, {"status": "succeeded", "exit_code": 0}),
        ("raise SystemExit(137)", {}, {"status": "failed", "exit_code": 137, "limit_hit": None}),
        ("import os; os.kill(os.getpid(), 11)", {}, {"status": "failed", "signal": "SIGSEGV"}),
        ("import time; time.sleep(9)", {"timeout_ms": 300},
         {"status": "timeout", "limit_hit": "timeout_ms"}),
        ("while True: pass", {"cpu_ms": 300}, {"status": "timeout", "limit_hit": "cpu_ms"}),
        ("x = b'x' * (1 << 30)", {"memory_mb": 64}, {"status": "oom", "limit_hit": "memory_mb"}),
        ("import os\nwhile True: os.write(1, b'x' * 65536)", {"timeout_ms": 10000},
         {"status": "killed", "limit_hit": "max_output_bytes"}),
    ],
)  # fmt: skip
def test_each_status(service: Service, code: str, limits: dict[str, int], expected: Run) -> None:
    run = service.run("python", code, limits=limits)
    assert {key: run[key] for key in expected} == expected, run
    again = service.client.get(f"/v1/runs/{run['id']}").json()
    assert {key: again[key] for key in expected} == expected


def test_compile_errors(service: Service) -> None:
    run = service.run("go", "package main\n\nfunc main() { nothing() }\n")
    assert (run["status"], run["phase"]) == ("failed", "compile")
    assert "undefined: nothing" in run["stderr"]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"language": "cobol", "code": ""}, 400, "language"),
        ({"language": "python"}, 400, "code"),
        ({**EMPTY, "limits": {"timeout_ms": 60000}}, 400, "limits.timeout_ms"),
        ({**EMPTY, "limits": {"timeout_ms": "5000"}}, 400, "limits.timeout_ms"),
        ({**EMPTY, "files": [{"path": "../x", "content": ""}]}, 400, "files.0.path"),
        ({**EMPTY, "unknown": 1}, 400, "unknown"),
    ],
)  # fmt: skip
def test_bad_requests(service: Service, body: Run, status: int, param: str) -> None:
    answer = service.client.post("/v1/runs", json=body)
    error = answer.json()["error"]
    assert answer.status_code == status, answer.text
    assert error["param"].replace("[", ".").replace("]", "") == param, error
    assert error["request_id"] == answer.headers["x-request-id"]


def test_somebody_elses_run_does_not_exist(service: Service) -> None:
    run = service.run("python", "print(1)")
    mine = service.client.get(f"/v1/runs/{run['id']}")
    theirs = service.client.get(f"/v1/runs/{run['id']}", headers={"Authorization": "Bearer other"})
    nobodys = service.client.get("/v1/runs/run_nothing", headers={"Authorization": "Bearer other"})
    assert (mine.status_code, theirs.status_code, nobodys.status_code) == (200, 404, 404)
    assert (
        service.client.get(f"/v1/runs/{run['id']}", headers={"Authorization": ""}).status_code
        == 401
    )


def test_many_at_once(service: Service) -> None:
    answers: list[Run] = []

    def ask(number: int) -> None:
        answers.append({"n": number, **service.run("python", f"print({number})")})

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted((a["n"], a["stdout"]) for a in answers) == [(n, f"{n}\n") for n in range(30)]


def test_nothing_leaks(tmp_path: Path) -> None:
    """After many runs of every ending the service has of the host what it had before."""
    codes: list[tuple[str, dict[str, Any]]] = [
        ("print(1)", {}),
        ("open('outputs/x', 'w').write('x')", {}),
        (LEAVES_CHILDREN, {}),
        ("raise ValueError", {}),
        ("import time; time.sleep(9)", {"limits": {"timeout_ms": 50}}),
    ]
    data = tmp_path / "data"
    # A pool of one size: one that follows demand has more of the host's when it is busy.
    with serving(data, WARM_POOL="1", WARM_POOL_MAX="8") as service:
        for code, fields in codes * 4:
            service.run("python", code, **fields)
        time.sleep(3)
        before = footprint(service.process.pid, data)
        for number in range(RUNS):
            code, fields = codes[number % len(codes)]
            service.run("python", code, **fields)

        def settled() -> bool:
            now = footprint(service.process.pid, data)
            return all(getattr(now, name) <= getattr(before, name) + slack[name] for name in slack)

        # Three groups more than at first may wait to serve again, each with its files open; what
        # leaks with every run, or every fifth, is more than they are.
        open_files = 3 * 9 + 4
        slack = {"processes": 0, "mounts": 0, "cgroups": 0, "descriptors": open_files}
        slack["directories"] = 300
        assert settle(settled), (before, footprint(service.process.pid, data))


def test_killed_and_started_again(tmp_path: Path) -> None:
    """After ``kill -9`` every answered run is there, and the next start cleans up."""
    data = tmp_path / "data"
    with serving(data) as service:
        answered = [service.run("python", f"print({n})") for n in range(10)]
        thread = threading.Thread(target=_ask_and_be_cut_off, args=(service.url,))
        thread.start()
        time.sleep(1)
        pid, helpers = service.process.pid, descendants(service.process.pid)
        assert helpers
        service.process.kill()
        service.process.wait(10)
        thread.join(30)
    assert settle(lambda: not [p for p in helpers if _alive(p)]), "helpers outlived the service"
    with serving(data) as service:
        for run in answered:
            again = service.client.get(f"/v1/runs/{run['id']}").json()
            assert (again["status"], again["stdout"]) == (run["status"], run["stdout"])
        assert service.run("python", "print('back')")["stdout"] == "back\n"
        assert not cgroups(pid), "cgroups of the killed service were not swept"


def test_ending_with_a_program_running(tmp_path: Path) -> None:
    """Asked to end, the service lets the running program finish and answers."""
    data = tmp_path / "data"
    answers: list[Run] = []
    with serving(data) as service:
        url, pid = service.url, service.process.pid
        thread = threading.Thread(
            target=lambda: answers.append(_post(url, "import time; time.sleep(2); print('whole')"))
        )
        thread.start()
        time.sleep(1)
        helpers = descendants(pid)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(30) == 0
        thread.join(10)
    assert [run["stdout"] for run in answers] == ["whole\n"]
    assert settle(lambda: not [p for p in helpers if _alive(p)]), "helpers outlived the service"
    assert not cgroups(pid)
    with serving(data) as service:
        kept = service.client.get(f"/v1/runs/{answers[0]['id']}").json()
        assert kept["stdout"] == "whole\n"


def _post(url: str, code: str) -> Run:
    headers = {"Authorization": "Bearer dev_123"}
    body = {"language": "python", "code": code}
    run: Run = httpx.post(f"{url}/v1/runs", json=body, headers=headers, timeout=30).json()
    return run


def _ask_and_be_cut_off(url: str) -> None:
    with pytest.raises(httpx.HTTPError):
        _post(url, "import time; time.sleep(5)")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
