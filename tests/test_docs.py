"""The documents say what the code does: everything named in one is in the other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import typer

from code_executor import languages
from code_executor.api import create_app
from code_executor.api.schemas import RunObject
from code_executor.api.service_port import ServicePort
from code_executor.auth import KeyRing
from code_executor.cli import app as command_line
from code_executor.config import settings_table
from code_executor.model import DEFAULT_LIMITS, MAXIMUM_LIMITS, Limits, RunStatus
from code_executor.sandbox import conformance
from code_executor.signing import Signer, parse_signing_keys

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "src" / "code_executor"
LOCKS = ["requirements.lock", "requirements-dev.lock", "runners/python/requirements.lock"]
PROMISES = [f"P{number}" for number in range(1, 13)]


def _documents() -> list[Path]:
    return [
        *sorted(ROOT.glob("*.md")),
        *(path for folder in ("docs", "design", "changelog.d") for path in _markdown(folder)),
    ]


def _markdown(folder: str) -> list[Path]:
    return sorted((ROOT / folder).glob("*.md"))


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _rows(name: str) -> list[list[str]]:
    """The cells of every table row of a document."""
    lines = (line.strip() for line in _read(name).splitlines())
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in lines
        if line.startswith("|") and not line.startswith("|--")
    ]


def _first_code(cell: str) -> str:
    match = re.match(r"`([^`]+)`", cell)
    return match[1] if match else ""


# --- what the service is told ---------------------------------------------------------------


def test_the_settings_page_has_every_setting_as_it_is() -> None:
    table = {f"| `{name}` | `{default}` | {text} |" for name, default, text in settings_table()}
    written = {line for line in _read("docs/settings.md").splitlines() if line.startswith("| `")}
    assert written == table


def test_the_readme_names_only_settings_that_exist() -> None:
    section = _read("README.md").partition("## Settings")[2].partition("\n## ")[0]
    named = set(re.findall(r"^\| `([A-Z_]+)`", section, re.M))
    assert named
    assert named <= {name for name, _, _ in settings_table()}


def test_the_command_line_page_has_every_command() -> None:
    commands = {command.name or _name_of(command.callback) for command in _commands()}
    described = {
        match[1]
        for row in _rows("docs/cli.md")
        if (match := re.match(r"`code-executor ([a-z-]+)", row[0]))
    }
    assert described == commands


def _commands() -> list[typer.models.CommandInfo]:
    return command_line.registered_commands


def _name_of(callback: object) -> str:
    return str(getattr(callback, "__name__", "")).replace("_", "-")


# --- the wire -------------------------------------------------------------------------------


def test_the_api_page_has_every_endpoint() -> None:
    keys = KeyRing.parse("token:label")
    app = create_app(
        cast(ServicePort, None), keys=keys, signer=Signer(parse_signing_keys("k" * 32))
    )
    served = {
        f"{method.upper()} {path}"
        for path, operations in app.openapi()["paths"].items()
        for method in operations
    }
    described = set(re.findall(r"`((?:GET|POST|DELETE|PUT|PATCH) /[^`]*)`", _endpoints_section()))
    assert described == served


def _endpoints_section() -> str:
    return _read("docs/api.md").partition("## Endpoints")[2].partition("\n## ")[0]


def test_the_api_page_has_every_error_code() -> None:
    section = _read("docs/api.md").partition("## Errors")[2]
    described = set(re.findall(r"^\| `([a-z_]+)` \| \d{3} \|", section, re.M))
    assert described == set(_error_codes())


def _error_codes() -> Iterator[str]:
    """Codes as the source has them: class attributes, ``code=…``, the edge's own."""
    for node in (node for path in SOURCES.rglob("*.py") for node in ast.walk(_parsed(path))):
        if isinstance(node, ast.keyword) and node.arg == "code":
            yield from _strings(node.value)
    for node in ast.walk(_parsed(SOURCES / "errors.py")):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "code":
            yield from _strings(node.value)
    edge = "\n".join(path.read_text(encoding="utf-8") for path in (SOURCES / "api").glob("*.py"))
    yield from re.findall(r'error_body\(\s*\d{3}, "([a-z_]+)"', edge)
    yield from re.findall(r'^    \d{3}: \("([a-z_]+)", "', edge, re.M)


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _strings(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


@pytest.mark.parametrize("name", sorted(RunObject.model_fields))
def test_the_api_page_has_every_field_of_a_run(name: str) -> None:
    assert f"`{name}`" in _read("docs/api.md").partition("### The run")[2]


def test_the_api_page_has_every_status() -> None:
    section = _read("docs/api.md").partition("| status |")[2].partition("\n\n")[0]
    described = set(re.findall(r"`([a-z]+)`", re.sub(r"\| [^|]*\|$", "", section, flags=re.M)))
    assert described == {status.value for status in RunStatus}


# --- limits and languages -------------------------------------------------------------------


@pytest.mark.parametrize("name", Limits.names())
def test_the_limits_page_has_every_limit(name: str) -> None:
    rows = {_first_code(row[0]): row[1:3] for row in _rows("docs/limits.md")}
    assert rows[name] == [str(getattr(DEFAULT_LIMITS, name)), str(getattr(MAXIMUM_LIMITS, name))]
    assert f"**`{name}`" in _read("docs/limits.md") or f", `{name}`**" in _read("docs/limits.md")


def test_the_languages_page_has_every_language() -> None:
    described = {tuple(row[:3] + row[4:]) for row in _rows("docs/languages.md") if len(row) == 5}
    expected = {
        (
            f"`{language.id}`",
            ", ".join(f"`{alias}`" for alias in language.aliases),
            f"`{language.source}`",
            str(language.processes),
        )
        for language in languages.load()
    }
    assert described - {("`language`", "also", "main file", "processes")} == expected


def test_the_languages_page_has_every_package() -> None:
    listed = [
        line
        for line in _read("runners/python/requirements.txt").splitlines()
        if line and not line.startswith("#")
    ]
    section = _read("docs/languages.md").partition("## Python")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"`([a-z-]+)`", section.partition("with:")[2].split("\n\n")[1])) == (
        sorted(listed)
    )


# --- promises -------------------------------------------------------------------------------


def _promises() -> dict[str, str]:
    """Promise → its last cell, the tests."""
    return {row[0]: row[-1] for row in _rows("SECURITY.md") if re.fullmatch(r"P\d+", row[0])}


def test_every_promise_is_there_and_has_a_test_or_says_that_it_has_none() -> None:
    promises = _promises()
    assert list(promises) == PROMISES
    without = [name for name, cell in promises.items() if "`" not in cell and "pending" not in cell]
    assert without == []


def test_every_test_that_a_promise_names_exists_and_is_of_that_promise() -> None:
    named = [(p, name) for p, cell in _promises().items() for name in re.findall(r"`(.+?)`", cell)]
    assert [pair for pair in named if not _proves(*pair)] == []


def _proves(promise: str, name: str) -> bool:
    """Whether ``name`` is a test file, ``file::function``, a check or ``group.*`` for it."""
    if name.startswith("tests/"):
        path, _, function = name.partition("::")
        file = ROOT / path
        return file.is_file() and (not function or f"def {function}(" in file.read_text())
    mine = {check.name for check in conformance.CHECKS if check.promise == promise}
    return name in mine | {f"{check.partition('.')[0]}.*" for check in mine}


def test_every_check_is_of_a_known_promise() -> None:
    assert {check.promise for check in conformance.CHECKS} <= set(PROMISES)


# --- the documents themselves ---------------------------------------------------------------


@pytest.mark.parametrize("path", _documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    dead = [target for target in targets if not _leads(path, target)]
    assert dead == []


def _leads(document: Path, target: str) -> bool:
    if re.match(r"https?:", target):
        return True
    name, _, anchor = target.partition("#")
    file = (document.parent / name).resolve() if name else document
    if not file.exists():
        return False
    return not anchor or anchor in _anchors(file)


def _anchors(file: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", _documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_that_are_told_exist(path: Path) -> None:
    told = _code(path.read_text(encoding="utf-8"))
    targets = set(re.findall(r"^([a-z-]+):", _read("Makefile"), re.M))
    named = set(re.findall(r"(?:^|\s)make ((?!-)[a-z-]+)", told, re.M))
    assert named <= targets


def _code(text: str) -> str:
    """What a document sets as code: blocks for a shell, and words between backticks."""
    found = re.findall(r"```sh\n(.*?)```|(?<!`)`([^`\n]+)`", text, re.S)
    return "\n".join(block or span for block, span in found)


def test_every_page_is_linked_from_an_index() -> None:
    for index, folder in (("README.md", "docs"), ("design/README.md", "design")):
        links = set(re.findall(r"\]\(([^)#\s]+)", _read(index)))
        base = (ROOT / index).parent
        linked = {(base / link).resolve() for link in links}
        assert [
            p.name for p in _markdown(folder) if p.resolve() not in linked | {ROOT / index}
        ] == []


@pytest.mark.parametrize("name", LOCKS)
def test_locks_hold_pins_with_hashes_and_nothing_of_a_machine(name: str) -> None:
    for block in re.split(r"\n(?=[a-z0-9])", _read(name)):
        code = re.sub(r"#.*", "", block)
        assert re.fullmatch(
            r"\s*[a-z0-9.-]+==\S+ \\\n(\s+--hash=sha256:[0-9a-f]{64}( \\)?\n)+\s*", code + "\n"
        ), block[:200]
