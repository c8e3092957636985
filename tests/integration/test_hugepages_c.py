"""``init/hugepages.c``: a program's text moves into huge pages, or stays as it is.

Undefined behaviour is looked for; addresses are not, since the sanitizer for them puts forbidden
gaps between the constants that are copied here as a whole.
"""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest
from tests.c.build import C, sources

from code_executor.sandbox.build import COMMON, SOURCES

UNDEFINED = ("-fsanitize=undefined", "-fno-sanitize-recover=all")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
KERNEL = tuple(int(part) for part in platform.release().split(".")[:2])


def run(target: Path, *flags: str) -> str:
    """What the driver says when it is built with ``flags``."""
    files = [C / "drive_hugepages.c", *sources("hugepages")]
    command: list[str | Path] = [
        "cc",
        *COMMON,
        *UNDEFINED,
        *flags,
        f"-I{SOURCES}",
        "-o",
        target,
        *files,
    ]
    subprocess.run(command, check=True)
    return subprocess.run([target], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(
    KERNEL < (6, 1) or not HUGE_PAGES.exists(), reason="this kernel has no MADV_COLLAPSE"
)
@pytest.mark.parametrize("place", ["-no-pie", "-pie"])
def test_what_was_looked_at_is_moved_and_is_what_it_was(tmp_path: Path, place: str) -> None:
    assert (
        run(tmp_path / "program", place, *(["-fPIE"] if place == "-pie" else [])) == "same moved\n"
    )


def test_a_kernel_that_does_not_know_the_request_changes_nothing(tmp_path: Path) -> None:
    assert run(tmp_path / "program", "-no-pie", "-DMADV_COLLAPSE=9999") == "same stayed\n"
