"""A filter that is switched off is said wherever somebody looks (API.md): never in silence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.service import PROGRAM, serving
from tests.engine.rig import Engine

pytestmark = pytest.mark.docker
SETTING = "DISABLE_SANDBOX_SECURITY"


def settings(engine: Engine, off: str) -> dict[str, str]:
    return {"SANDBOX_BACKEND": "docker", "DOCKER_HOST": engine.address, SETTING: off}


@pytest.mark.parametrize(("off", "waived"), [("true", ["P1"]), ("false", [])])
def test_the_service_tells_it(engine: Engine, tmp_path: Path, off: str, waived: list[str]) -> None:
    with serving(tmp_path / "data", **settings(engine, off)) as service:
        ready = service.client.get("/v1/ready").json()
        assert service.run("python", "print(1)")["stdout"] == "1\n"
    assert ready["waived"] == waived
    (first,) = (promise for promise in ready["promises"] if promise["id"] == "P1")
    assert (first["kept"], first["waived"]) == (not waived, bool(waived))
    assert (SETTING in first["evidence"]) is bool(waived)
    log = "".join(path.read_text() for path in tmp_path.rglob("*log*") if path.is_file())
    assert (f"{SETTING} is set" in log) is bool(waived)


def check(engine: Engine, data: Path, *options: str) -> str:
    """What ``code-executor check`` prints with the filter switched off."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "check", *options],
        env={
            "PATH": os.environ["PATH"],
            "DATA_DIR": str(data),
            "COLUMNS": "200",
            **settings(engine, "true"),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_check_tells_it(engine: Engine, tmp_path: Path) -> None:
    told: dict[str, Any] = json.loads(check(engine, tmp_path, "--json"))
    (first,) = (promise for promise in told["promises"] if promise["id"] == "P1")
    assert (first["kept"], first["waived"]) == (False, True)
    table = check(engine, tmp_path)
    (line,) = (line for line in table.splitlines() if "no way out of the sandbox" in line)
    assert "waived" in line
    assert f"unset {SETTING}" in table
