"""How a program ended in a sandbox beside how it ended under the bare interpreter, byte for byte.

What no two runs of the bare interpreter share (addresses, process ids) is blanked on both sides.
"""

from __future__ import annotations

import difflib
import re
import subprocess
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.acceptance.bare import HOST, RUNTIME, End, run_bare
from tests.acceptance.cases import plan_of
from tests.acceptance.corpus import Case

from code_executor.model import Outcome

VOLATILE = re.compile(rb"0x[0-9a-f]{8,16}|(?<=\(node:)\d+(?=\))")
IGNORED = re.compile(rb"(?<=SigIgn:)(\\t|\s+)([0-9a-f]{16})")
LIBC_SIGNALS = 0x1_8000_0000
"""Signals 32 and 33, libc's own: the bare side may inherit them ignored from who runs the tests."""


@dataclass(slots=True)
class References:
    """What the bare interpreters of one system say, each program run once.

    ``cache`` keeps Go's build cache: the standard library is compiled once.
    """

    cache: Path
    tree: Path = HOST
    known: dict[str, End] = field(default_factory=dict)

    def of(self, case: Case) -> End:
        """The end of ``case``."""
        name = f"{case.language}/{case.id}"
        if name not in self.known:
            self.known[name] = run_bare(plan_of(case), self.cache, tree=self.tree)
        return self.known[name]


def end_of(outcome: Outcome) -> End:
    """What a sandbox told, in the same words."""
    return End(
        outcome.stdout.data, outcome.stderr.data, outcome.exit_code, outcome.signal, outcome.phase
    )


@cache
def has_module(name: str) -> bool:
    """Whether the Python runtime has a module."""
    command = [str(RUNTIME / "bin" / "python3"), "-c", f"import {name}"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def difference(bare: End, ours: End) -> str:
    """What differs, as unified diffs; empty when nothing does."""
    parts = [
        _diff("stdout", bare.stdout, ours.stdout),
        _diff("stderr", bare.stderr, ours.stderr),
    ]
    parts += [
        f"{name}: {getattr(bare, name)} under the interpreter, {getattr(ours, name)} in the sandbox"
        for name in ("exit_code", "signal", "phase")
        if getattr(bare, name) != getattr(ours, name)
    ]
    return "\n".join(filter(None, parts))


def _without_libc_signals(field: re.Match[bytes]) -> bytes:
    return field[1] + b"%016x" % (int(field[2], 16) & ~LIBC_SIGNALS)


def _diff(name: str, wanted: bytes, got: bytes) -> str:
    wanted, got = (IGNORED.sub(_without_libc_signals, text) for text in (wanted, got))
    wanted, got = (VOLATILE.sub(b"<volatile>", text) for text in (wanted, got))
    if wanted == got:
        return ""
    lines = difflib.unified_diff(
        [f"{line!r}" for line in wanted.splitlines(keepends=True)],
        [f"{line!r}" for line in got.splitlines(keepends=True)],
        f"{name} under the interpreter",
        f"{name} in the sandbox",
        lineterm="",
    )
    return "\n".join(list(lines)[:60])
