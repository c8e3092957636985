"""Where a benchmark runs: the interpreters, and a scratch directory that is removed at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.programs import Program

ROOT = Path(__file__).parents[1]

# How each language takes a program on the command line, as its users do.
_INLINE = {"node": ("node", "-e"), "ruby": ("ruby", "-e"), "php": ("php", "-r")}


class Skipped(Exception):
    """Something that cannot be measured on this machine, and why."""


@dataclass(frozen=True, slots=True)
class Place:
    """``scratch`` with ``work`` (where programs run) and ``home`` (their caches); ``runtime`` is
    the directory of the interpreters that the service uses too."""

    scratch: Path
    runtime: Path

    @property
    def work(self) -> Path:
        return self.scratch / "work"

    @property
    def home(self) -> Path:
        return self.scratch / "home"

    @property
    def python(self) -> Path:
        return self.runtime / "python"

    def environment(self) -> dict[str, str]:
        """What a program finds; for Python the same variables as in the service's sandbox."""
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "HOME": str(self.home),
            "MPLBACKEND": "Agg",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "GOCACHE": str(self.home / "go-build"),
            "GOPROXY": "off",
            "CGO_ENABLED": "0",
        }

    def command(self, program: Program) -> list[str]:
        """The argument vector that runs ``program`` in ``work``.

        Raises:
            Skipped: this machine has no interpreter for it.
        """
        if program.language == "python":
            return [self._found(str(self.python / "bin" / "python3")), "-c", program.code]
        if program.language == "go":
            return [self._found("go"), "run", "main.go"]
        interpreter, flag = _INLINE[program.language]
        return [self._found(interpreter), flag, program.code]

    def write_source(self, program: Program, number: int) -> None:
        """Put on disk what :meth:`command` reads from there."""
        if program.language == "go":
            (self.work / "main.go").write_text(program.source(number))

    def _found(self, name: str) -> str:
        found = shutil.which(name, path=self.environment()["PATH"])
        if found is None:
            raise Skipped(f"no {Path(name).name} on this machine")
        return found


@contextmanager
def temporary_place() -> Iterator[Place]:
    """A place, removed afterwards."""
    runtime = Path(os.environ.get("RUNTIME_DIR") or ROOT / ".runtime").absolute()
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as scratch:
        place = Place(Path(scratch), runtime)
        (place.work / "outputs").mkdir(parents=True)
        place.home.mkdir()
        yield place
