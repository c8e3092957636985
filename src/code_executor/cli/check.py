"""``code-executor check`` and ``languages``: what this host can do, as tables or JSON."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from code_executor.compose import Report, examine
from code_executor.config import Settings
from code_executor.model import LanguageStatus, Promise
from code_executor.observe import configure_logging


def check(settings: Settings, *, full: bool, as_json: bool) -> bool:
    """Try this host and print what was found; whether all is well."""
    configure_logging("ERROR")
    report = asyncio.run(examine(settings, full=full))
    if as_json:
        typer.echo(json.dumps(as_data(report), indent=2))
    else:
        _print(report)
    return report.ok


def list_languages(settings: Settings, *, as_json: bool) -> None:
    """Print the languages of this host.

    Raises:
        HostUnfit: no program can be run here at all.
    """
    configure_logging("ERROR")
    report = asyncio.run(examine(settings))
    if report.problem is not None:
        raise report.problem
    if as_json:
        typer.echo(json.dumps([asdict(status) for status in report.languages], indent=2))
    else:
        _console().print(_language_table(report.languages))


def as_data(report: Report) -> dict[str, Any]:
    """The report as plain data, for ``--json``."""
    problem = report.problem
    return {
        "ok": report.ok,
        "problem": problem and {"message": problem.message, "fix": problem.fix},
        "promises": [asdict(promise) for promise in report.promises],
        "languages": [asdict(status) for status in report.languages],
        "conformance": [
            {"promise": promise, "check": title, "failure": failure}
            for promise, title, failure in report.conformance
        ],
    }


def _print(report: Report) -> None:
    console = _console()
    if report.problem is not None:
        console.print(f"[red]✗[/] {_plain(report.problem.message)}", highlight=False)
        console.print(f"  fix: {_plain(report.problem.fix)}", highlight=False)
        return
    console.print(_promise_table(report.promises))
    for promise in report.promises:
        if not promise.kept and promise.fix:
            console.print(f"{promise.id}: fix: {_plain(promise.fix)}", highlight=False)
    console.print(_language_table(report.languages))
    for promise_id, title, failure in report.conformance:
        mark = "[green]✓[/]" if failure is None else f"[red]✗[/] {_plain(failure)}:"
        console.print(f"{promise_id} {mark} {_plain(title)}", highlight=False)
    console.print(_verdict(report), highlight=False)


def _verdict(report: Report) -> str:
    """The last line; what is lacking is named even where the service can do without."""
    if not report.ok:
        return "[red]Something is missing.[/]"
    lacking = [f"{each.id} is not available" for each in report.languages if not each.available]
    lacking += [f"{each.id} is waived" for each in report.promises if not each.kept]
    if lacking:
        return f"[yellow]Programs can be run, but {', '.join(lacking)}.[/]"
    return "[green]All is well.[/]"


def _promise_table(promises: Sequence[Promise]) -> Table:
    table = Table("", "Promise", "", "How it was seen", title="Promises", title_justify="left")
    for promise in promises:
        table.add_row(promise.id, _plain(promise.title), _mark(promise), _plain(promise.evidence))
    return table


def _mark(promise: Promise) -> str:
    if promise.kept:
        return "[green]kept[/]"
    return "[yellow]waived[/]" if promise.waived else "[red]broken[/]"


def _language_table(languages: Sequence[LanguageStatus]) -> Table:
    table = Table("Id", "Version", "File", "", title="Languages", title_justify="left")
    for status in languages:
        state = "[green]available[/]" if status.available else f"[red]{_plain(status.reason)}[/]"
        table.add_row(status.id, _plain(status.version or "-"), status.file_name, state)
    return table


def _plain(text: str | None) -> str:
    """Text with nothing that rich would take for markup."""
    return (text or "").replace("[", r"\[")


def _console() -> Console:
    return Console(soft_wrap=False)
