"""Byte for byte: a program in the sandbox prints and ends as it does under the bare interpreter.

What no two runs of the bare interpreter share (addresses, process ids) is blanked on both sides.
A flavour's warm and cold ways are both tried: the corpus has programs of each.
"""

from __future__ import annotations

import difflib
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.bare import RUNTIME, End, run_bare
from tests.acceptance.cases import LANGUAGES, cases, plan_of
from tests.acceptance.corpus import Case

from code_executor.ports import Backend
from code_executor.sandbox.conformance.bench import carry_out

pytestmark = [pytest.mark.sandbox, pytest.mark.asyncio(loop_scope="session")]
VOLATILE = re.compile(rb"0x[0-9a-f]{8,16}|(?<=\(node:)\d+(?=\))")
IGNORED = re.compile(rb"(?<=SigIgn:)(\\t|\s+)([0-9a-f]{16})")
LIBC_SIGNALS = 0x1_8000_0000
"""Signals 32 and 33, libc's own: the bare side may inherit them ignored from who runs the tests."""
PRELOADED = "a warm interpreter has loaded modules that the program has not asked for"
BOOTSTRAP = "an interpreter started ahead has read the file that waits for the program"
DIFFERENT = {
    "python/introspection/sys-modules-of-a-bare-program": PRELOADED,
    "python/introspection/sys-modules-after-import-json": PRELOADED,
    "python/introspection/gc-freeze-count": PRELOADED,
    "php/process/globals-and-resources": BOOTSTRAP,
    "php/process/included-files": BOOTSTRAP,
    "php/process/ini-prepended-file": BOOTSTRAP,
}
"""What a program can see of the head start. A case that comes to be equal must leave this table."""
ENOUGH = {"python": 250, "node": 40, "ruby": 40, "php": 40, "go": 40}


def _parameters() -> Iterator[Any]:
    """Each case as a parameter of the test below, the known differences marked."""
    for language in LANGUAGES:
        for case in cases(language):
            name = f"{language}/{case.id}"
            reason = DIFFERENT.get(name)
            marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
            yield pytest.param(case, id=name, marks=marks)


@pytest.fixture(scope="session")
def go_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Go's build cache, shared by all cases: the standard library is compiled once."""
    return tmp_path_factory.mktemp("go-cache")


@pytest.mark.parametrize("case", [*_parameters()])
async def test_same_as_the_interpreter(native: Backend, case: Case, go_cache: Path) -> None:
    available = {status.id for status in await native.languages() if status.available}
    if case.language not in available:
        pytest.skip(f"{case.language} is not available here")
    if case.needs and not _has_module(case.needs):
        pytest.skip(f"{case.needs} is not installed in the runtime")
    plan = plan_of(case)
    outcome = await carry_out(native, plan)
    ours = End(
        outcome.stdout.data, outcome.stderr.data, outcome.exit_code, outcome.signal, outcome.phase
    )
    difference = _difference(run_bare(plan, go_cache), ours)
    assert not difference, f"{case.language}/{case.id} ({outcome.status}):\n{difference}"


@pytest.mark.parametrize("language", LANGUAGES)
async def test_the_corpus_is_large(language: str) -> None:
    assert len(cases(language)) >= ENOUGH[language]


async def test_every_exception_is_a_case() -> None:
    assert set(DIFFERENT) <= {f"{name}/{case.id}" for name in LANGUAGES for case in cases(name)}


@cache
def _has_module(name: str) -> bool:
    command = [str(RUNTIME / "bin" / "python3"), "-c", f"import {name}"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _difference(bare: End, ours: End) -> str:
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
