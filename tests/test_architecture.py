"""The shape of the code: who imports whom (contracts in ``pyproject.toml``), how big things are.

A function that must be longer says so where it begins: ``# long: the reason``.
"""

from __future__ import annotations

import ast
import os
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "src" / "code_executor"
TESTS = ROOT / "tests"

LONGEST_FUNCTION = 60
NINE_IN_TEN = 30
MEDIAN = 10
LONGEST_MODULE = 450

# In the C sources a function's body ends with a brace in the first column, like its opening line.
_C_FUNCTION = re.compile(r"^(?P<head>\w[^\n;=]*\([^;]*?\))\s*\{\n(?P<body>.*?)^\}", re.M | re.S)


@dataclass(frozen=True, slots=True)
class Function:
    """One function: where it is, its lines without its docstring, whether it is excused."""

    place: str
    lines: int
    excused: bool


def _python_functions(path: Path) -> Iterator[Function]:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not _is_stub(node):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1 - _docstring_lines(node)
            head = lines[max(node.lineno - 2, 0) : node.body[0].lineno]
            excused = any(re.search(r"# long: \w", line) for line in head)
            yield Function(f"{os.path.relpath(path, ROOT)}:{node.name}", length, excused)


def _docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[0]
    if ast.get_docstring(node) is None or first.end_lineno is None:
        return 0
    return first.end_lineno - first.lineno + 1


def _is_stub(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """A protocol's method: nothing but a docstring and ``...``."""
    last = node.body[-1]
    return isinstance(last, ast.Expr) and (
        isinstance(last.value, ast.Constant) and last.value.value is ...
    )


def _c_functions(path: Path) -> Iterator[Function]:
    text = path.read_text(encoding="utf-8")
    for match in _C_FUNCTION.finditer(text):
        before = text[: match.start()].rsplit("\n", 2)[-2:]
        excused = any("long: " in line for line in before)
        name = match["head"].split("(")[0].split()[-1].lstrip("*")
        lines = match.group().count("\n") + 1
        yield Function(f"{os.path.relpath(path, ROOT)}:{name}", lines, excused)


def _modules(*directories: Path) -> list[Path]:
    return sorted(path for directory in directories for path in directory.rglob("*.py"))


def _c_sources() -> list[Path]:
    return sorted((SOURCES / "sandbox" / "init").glob("*.[ch]"))


def test_imports_keep_to_the_contracts(capsys: pytest.CaptureFixture[str]) -> None:
    status = lint_imports(str(ROOT / "pyproject.toml"), no_cache=True, no_logo=True)
    assert status == 0, capsys.readouterr().out


def test_functions_of_the_package_are_short() -> None:
    functions = [f for path in _modules(SOURCES) for f in _python_functions(path)]
    lengths = [f.lines for f in functions]
    assert statistics.median(lengths) <= MEDIAN
    assert statistics.quantiles(lengths, n=10)[-1] <= NINE_IN_TEN
    assert _too_long(functions) == []


def test_functions_of_the_sandbox_in_c_are_short() -> None:
    functions = [f for path in _c_sources() for f in _c_functions(path)]
    assert functions, "the C sources have moved, or are written in another style"
    assert statistics.quantiles([f.lines for f in functions], n=10)[-1] <= NINE_IN_TEN
    assert _too_long(functions) == []


def test_functions_of_the_tests_are_short() -> None:
    functions = [f for path in _modules(TESTS) for f in _python_functions(path)]
    assert _too_long(functions) == []


def _too_long(functions: list[Function]) -> list[str]:
    return [
        f"{f.place}: {f.lines} lines, at most {LONGEST_FUNCTION}"
        for f in functions
        if f.lines > LONGEST_FUNCTION and not f.excused
    ]


def test_modules_are_split_before_they_grow_too_long() -> None:
    too_long = {
        str(path.relative_to(ROOT)): lines
        for path in [*_modules(SOURCES, TESTS), *_c_sources()]
        if (lines := path.read_text(encoding="utf-8").count("\n")) > LONGEST_MODULE
    }
    assert too_long == {}


def test_every_unit_test_file_has_its_module() -> None:
    """``tests/unit/<path>/test_<name>.py`` tests the module or package ``<path>/<name>``, or
    the package ``<path>`` itself when that is its name."""
    unit = TESTS / "unit"
    strays = []
    for test in unit.rglob("test_*.py"):
        package = SOURCES / test.parent.relative_to(unit)
        name = test.stem.removeprefix("test_")
        subjects = (package / f"{name}.py", package / name)
        if package.name != name and not any(subject.exists() for subject in subjects):
            strays.append(str(test.relative_to(ROOT)))
    assert strays == []


def test_a_long_function_is_found_unless_it_is_excused(tmp_path: Path) -> None:
    body = "    x = 1\n" * LONGEST_FUNCTION
    sample = tmp_path / "sample.py"
    sample.write_text(f"def f() -> None:\n{body}\n\ndef g() -> None:  # long: a table\n{body}")
    functions = list(_python_functions(sample))
    assert [(f.lines, f.excused) for f in functions] == [(61, False), (61, True)]
    assert len(_too_long(functions)) == 1


def test_a_function_in_c_is_measured(tmp_path: Path) -> None:
    sample = tmp_path / "sample.c"
    sample.write_text(
        "int a;\n\nstatic int f(int x,\n             int y)\n{\n  a = x;\n}\n\nvoid *g(void) {\n}\n"
    )
    found = [(f.place.split(":")[1], f.lines) for f in _c_functions(sample)]
    assert found == [("f", 5), ("g", 2)]
