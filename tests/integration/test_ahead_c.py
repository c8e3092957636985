"""The key of a zygote's filter (``init/ahead.c``) and the registers, which a fork inherits."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tests.c.build import C

from code_executor.sandbox.build import COMMON, SOURCES

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="x86-64 registers")


@pytest.mark.parametrize("optimised", ["-O2", "-O3"])
def test_a_child_that_has_forgotten_it_has_it_in_none(tmp_path: Path, optimised: str) -> None:
    program = tmp_path / "drive_ahead"
    flags = [*COMMON, optimised, f"-I{SOURCES}"]
    subprocess.run(["cc", *flags, "-o", program, C / "drive_ahead.c"], check=True)
    told = subprocess.run([program], capture_output=True, text=True, check=True, timeout=20)
    assert told.stdout == "0 0 0\n"
