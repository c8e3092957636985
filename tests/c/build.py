"""Builds init's C with sanitizers."""

from __future__ import annotations

import subprocess
from pathlib import Path

from code_executor.sandbox.build import SOURCES, WARNINGS

C = Path(__file__).parent
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1")
FLAGS = ("-std=c11", "-D_GNU_SOURCE", *WARNINGS, *SANITIZE, f"-I{SOURCES}", f"-I{C}")
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",  # giving up leaves memory to the kernel
    "UBSAN_OPTIONS": "print_stacktrace=1:abort_on_error=1",
    "PATH": "/usr/bin:/bin",
}


def compiled(target: Path, *arguments: str | Path, compiler: str = "cc") -> Path:
    """A program of ``arguments``, at ``target``."""
    subprocess.run([compiler, *FLAGS, "-o", target, *arguments], check=True)
    return target


def sources(*names: str) -> list[Path]:
    """The real C files of these names."""
    return [SOURCES / f"{name}.c" for name in names]
