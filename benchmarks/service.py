"""The service under test: its own process, data directory and port; and as a subject."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from benchmarks.clients import Address, Connection, follow, request_bytes
from benchmarks.place import Place, Skipped
from benchmarks.programs import Program

TOKEN = "bench"
START_S = 120.0
STOP_S = 40.0
_READY = "is ready at "
_TAGS = {"php": "<?php "}
"""What a source file begins with that ``-r`` does without."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running service."""

    pid: int
    address: Address
    data: Path


@contextmanager
def serving(place: Place, data: Path, **settings: str) -> Iterator[Server]:
    """Start one on a free port, with the defaults but for ``settings`` and the rate of its key;
    stop it after.

    Raises:
        RuntimeError: it did not start; with the end of its log.
    """
    environment = {
        "PATH": os.environ["PATH"],
        "DATA_DIR": str(data),
        "RUNTIME_DIR": str(place.runtime),
        "API_KEYS": f"{TOKEN}:bench:1000000:1000000",
        **{name: os.environ[name] for name in ("DOCKER_HOST",) if name in os.environ},
        **settings,
    }
    command = [str(Path(sys.executable).with_name("code-executor")), "serve", "--port", "0"]
    log_file = data.with_suffix(".log")
    with log_file.open("w") as log, subprocess.Popen(
        command, env=environment, cwd=place.scratch, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,  # as make up does
    ) as process:  # fmt: skip
        try:
            yield Server(process.pid, _address(process, log_file), data)
        finally:
            _stop(process)


def _address(process: subprocess.Popen[str], log: Path) -> Address:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], (), (), START_S)
    line = process.stdout.readline() if ready else ""
    if _READY not in line:
        raise RuntimeError(f"the service did not start; its log ends:\n{log.read_text()[-3000:]}")
    url = urlsplit(line.split(_READY)[1].split()[0])
    assert url.hostname is not None
    assert url.port is not None
    return url.hostname, url.port


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()


def run_request(program: Program, number: int = 0) -> bytes:
    """``POST /v1/runs`` for ``program``, as bytes."""
    code = _TAGS.get(program.language, "") + program.source(number)
    body = {"language": program.language, "code": code}
    return request_bytes("POST", "/v1/runs", token=TOKEN, body=body)


def languages(address: Address) -> set[str]:
    """The languages that the service can run on this machine."""
    with Connection(address) as connection:
        answer = json.loads(connection.call(request_bytes("GET", "/v1/languages", token=TOKEN)))
    return {language["id"] for language in answer["data"] if language["available"]}


@dataclass(slots=True)
class OverHttp:
    """The service as a subject: one keep-alive connection, renewed when it was idle for long.

    A program with an artifact counts as run when the artifact has been fetched by its link.
    """

    address: Address
    name: str = "service"
    _connection: Connection | None = None
    _used: float = field(default=0.0)

    IDLE_S = 3.0
    """The server closes idle connections after five seconds."""

    def __enter__(self) -> OverHttp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if self._connection is not None:
            self._connection.__exit__(kind, value, trace)

    def prepare(self, program: Program, number: int) -> Callable[[], bytes]:
        connection, request = self._fresh(), run_request(program, number)
        if program.artifact is None:
            return lambda: connection.call(request)
        return lambda: self._with_artifact(connection, request)

    def printed(self, raw: bytes) -> bytes:
        run = json.loads(raw)
        if run["status"] != "succeeded":
            raise Skipped(f"the run ended as {run['status']}: {run['stderr'][-300:]}")
        return str(run["stdout"]).encode()

    def _with_artifact(self, connection: Connection, request: bytes) -> bytes:
        body = connection.call(request)
        _, path = follow(one_artifact(json.loads(body))["url"])
        connection.call(request_bytes("GET", path))
        return body

    def _fresh(self) -> Connection:
        if self._connection is not None and time.monotonic() - self._used > self.IDLE_S:
            self._connection.__exit__()
            self._connection = None
        if self._connection is None:
            self._connection = Connection(self.address)
        self._used = time.monotonic()
        return self._connection


def one_artifact(run: dict[str, Any]) -> dict[str, Any]:
    """The only artifact of a run.

    Raises:
        Skipped: there is none, or there are several.
    """
    artifacts: Sequence[dict[str, Any]] = run["artifacts"]
    if len(artifacts) != 1:
        raise Skipped(f"{len(artifacts)} artifacts, not one; stderr: {run['stderr'][-300:]}")
    return artifacts[0]
