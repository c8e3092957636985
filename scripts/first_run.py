"""What `make up` asks of the service over HTTP: is it alive, is it ready, does everything run?

::

    first_run.py url                                 where the service of these settings listens
    first_run.py health URL                          exit 0 when a Code Executor answers there
    first_run.py ready URL --pid PID --seconds N     waits; ends early when the process has gone
    first_run.py run URL                             one program in each available language

Settings are read as the service reads them; the bearer token is the first of ``API_KEYS``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path
from typing import Any

from code_executor.config import BadSettings, Settings

PROGRAMS = {
    "python": "import platform; print('Hello from Python', platform.python_version())",
    "node": "console.log('Hello from Node.js', process.versions.node)",
    "ruby": 'puts "Hello from Ruby #{RUBY_VERSION}"',
    "php": "<?php echo 'Hello from PHP ', PHP_VERSION, \"\\n\";",
    "go": (
        'package main\n\nimport (\n\t"fmt"\n\t"runtime"\n)\n\n'
        'func main() { fmt.Println("Hello from Go", runtime.Version()) }\n'
    ),
}


def local_url(settings: Settings) -> str:
    """The address of the service for a client on this machine."""
    host = "127.0.0.1" if settings.host in ("", "0.0.0.0", "::") else settings.host  # noqa: S104 - compared, not bound
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def first_token(settings: Settings) -> str:
    """The token of the first API key."""
    return settings.api_keys.get_secret_value().partition(",")[0].partition(":")[0].strip()


@cache
def _token() -> str:
    return first_token(Settings.load())


def call(url: str, body: object = None, *, timeout_s: float = 30) -> tuple[int, Any]:
    """Status and decoded JSON of one request; status 0 and a reason when nobody answers."""
    request = urllib.request.Request(url)  # noqa: S310 - the caller's own service
    request.add_header("Authorization", f"Bearer {_token()}")
    if body is not None:
        request.add_header("Content-Type", "application/json")
        request.data = json.dumps(body).encode()
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310 - as above
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as exc:
        return exc.code, _decoded(exc.read())
    except (OSError, ValueError) as exc:
        return 0, str(exc)


def _decoded(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content.decode(errors="replace")


def health(url: str) -> int:
    """0 when a Code Executor answers at ``url``."""
    return 0 if call(f"{url}/v1/health", timeout_s=3) == (200, {"status": "ok"}) else 1


def ready(url: str, pid: int, seconds: float) -> int:
    """0 once ``/v1/ready`` says so; 1, with the last reason, when it will not."""
    end = time.monotonic() + seconds
    answer: Any = None
    while time.monotonic() < end and Path(f"/proc/{pid}").exists():
        status, answer = call(f"{url}/v1/ready")
        if status == 200:
            return 0
        time.sleep(0.1)
    print("not ready:", json.dumps(answer, indent=2, ensure_ascii=False))
    return 1


def run_all(url: str) -> int:
    """Run one program in each available language and print a line for each; 0 if all succeed."""
    status, answer = call(f"{url}/v1/languages")
    if status == 401:
        print("the service was started with other API_KEYS than these")
        return 1
    if status != 200:
        print(f"GET /v1/languages: {status} {answer}")
        return 1
    return max((_run_one(url, language) for language in answer["data"]), default=1)


def _run_one(url: str, language: dict[str, Any]) -> int:
    name = f"  {language['name']:<8}"
    if not language["available"]:
        print(f"{name} not available: {language['reason']}")
        return 0
    if language["id"] not in PROGRAMS:
        return 0
    begun = time.perf_counter()
    status, run = call(
        f"{url}/v1/runs", {"language": language["id"], "code": PROGRAMS[language["id"]]}
    )
    took_ms = (time.perf_counter() - begun) * 1000
    if status != 200 or run["status"] != "succeeded":
        print(f"{name} failed: {status} {json.dumps(run, ensure_ascii=False)[:2000]}")
        return 1
    print(f"{name} {run['status']} in {took_ms:.0f} ms: {run['stdout'].strip()}")
    return 0


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, prog="first_run.py")
    parser.add_argument("what", choices=["url", "health", "ready", "run"])
    parser.add_argument("url", nargs="?", default="")
    parser.add_argument("--pid", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60)
    return parser.parse_args()


def main() -> int:
    """The command line."""
    options = arguments()
    try:
        settings = Settings.load()
    except BadSettings as exc:
        print(exc, file=sys.stderr)
        return 1
    if options.what == "url":
        print(local_url(settings))
        return 0
    if options.what == "health":
        return health(options.url)
    if options.what == "ready":
        return ready(options.url, options.pid, options.seconds)
    return run_all(options.url)


if __name__ == "__main__":
    sys.exit(main())
