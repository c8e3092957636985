"""The AppArmor profile is one: the parser that loads it on a host compiles it here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.engine.rig import must_run

from code_executor.sandbox.docker_spec import APPARMOR

PROFILE = Path(__file__).parents[2] / "apparmor" / "code-executor"


def _parser() -> str:
    found = shutil.which("apparmor_parser", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is not None:
        return found
    reason = "no apparmor_parser; scripts/setup.sh --tests"
    if must_run(os.environ, "docker"):
        pytest.fail(reason)
    pytest.skip(reason)


def _parse(text: str) -> subprocess.CompletedProcess[str]:
    """Compile without loading it (-Q: there may be no AppArmor in this kernel) or caching it."""
    return subprocess.run([_parser(), "-Q", "-K"], input=text, capture_output=True, text=True)


def test_the_parser_takes_the_profile() -> None:
    done = _parse(PROFILE.read_text())
    assert done.returncode == 0, done.stderr


def test_the_parser_refuses_a_broken_one() -> None:
    assert _parse(PROFILE.read_text().replace("deny mount,", "deny mount")).returncode != 0


def test_the_profile_has_the_name_that_the_backend_asks_for() -> None:
    assert re.findall(r"^profile (\S+)", PROFILE.read_text(), re.M) == [APPARMOR]
