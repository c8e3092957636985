"""A service of one's own: ``code-executor serve`` on a free port, and what it owns."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from tests.conftest import runtime_dir

READY = re.compile(r"Code Executor is ready at (http://\S+)")
PROGRAM = "from code_executor.cli import main; main()"
TOKEN = "dev_123"
Run = dict[str, Any]


@dataclass(slots=True)
class Service:
    """A running service and a client that may use it."""

    process: subprocess.Popen[str]
    url: str
    client: httpx.Client

    def run(self, language: str, code: str, **fields: Any) -> Run:
        """``POST /v1/runs``; the finished run."""
        body = {"language": language, "code": code, **fields}
        answer = self.client.post("/v1/runs", json=body)
        assert answer.status_code == 200, answer.text
        run: Run = answer.json()
        return run


@contextmanager
def serving(data: Path, **settings: str) -> Iterator[Service]:
    """Start a service on ``data`` and wait until it is ready; killed, if need be, at the end."""
    environment = {
        "PATH": os.environ["PATH"],
        "DATA_DIR": str(data),
        "RUNTIME_DIR": str(runtime_dir()),
        "API_KEYS": f"{TOKEN}:dev:10000:10000,other:other:10000:10000",
        **settings,
    }
    command = [sys.executable, "-c", PROGRAM, "serve", "--port", "0"]
    with (data.parent / "service.log").open("a") as log, subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
    ) as process:  # fmt: skip
        try:
            url = _address(process, data.parent / "service.log")
            with httpx.Client(
                base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60
            ) as client:
                yield Service(process, url, client)
        finally:
            process.kill()


def _address(process: subprocess.Popen[str], log: Path) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    match = READY.match(line)
    assert match is not None, f"not ready: {line!r}\n{log.read_text()[-3000:]}"
    return match[1]


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a service has of the host: everything that a leak would add to."""

    processes: int
    descriptors: int
    mounts: int
    cgroups: int
    directories: int


def footprint(pid: int, data: Path) -> Footprint:
    """Count what the service ``pid`` has now."""
    return Footprint(
        processes=len(descendants(pid)),
        descriptors=len(os.listdir(f"/proc/{pid}/fd")),
        mounts=len(_mounts(pid)),
        cgroups=len(cgroups(pid)),
        directories=sum(1 for path in data.rglob("*") if path.is_dir()),
    )


def _mounts(pid: int) -> list[str]:
    """Where something is mounted, but for what the backends that are tested beside it have."""
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    points = [line.split()[4] for line in lines]
    theirs = ("/overlay2/", "/netns/", "/containers/", "/run/code-executor/oci-")
    return [point for point in points if not any(part in point for part in theirs)]


def descendants(pid: int) -> list[int]:
    """Every process below ``pid``."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def cgroups(pid: int) -> list[Path]:
    """The control groups of the service ``pid``, in every hierarchy."""
    trees = [*Path("/sys/fs/cgroup").glob("**/code-executor-*")]
    own = [tree for tree in trees if tree.name.split("-")[2] == str(pid)]
    return [path for tree in own for path in (tree, *(p for p in tree.rglob("*") if p.is_dir()))]


def settle(look: Callable[[], bool], seconds: float = 15) -> bool:
    """Whether ``look`` says yes within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not look():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
