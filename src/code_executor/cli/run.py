"""``code-executor run``: one program in the same sandbox, without the server.

Exit code: the program's own; 128 and its number if a signal ended it; 124 if it was ended for
time, 137 for memory or by the service; 125 if it could not be run.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import typer

from code_executor.compose import make_languages, run_local
from code_executor.config import BadSettings, Settings
from code_executor.errors import HostUnfit, SandboxUnavailable
from code_executor.languages import Language, by_name
from code_executor.model import (
    ArtifactFile,
    InputFile,
    Limits,
    Outcome,
    RunRequest,
    RunStatus,
    SourceFile,
)
from code_executor.observe import configure_logging

_ENDED = {RunStatus.TIMEOUT: 124, RunStatus.OOM: 137, RunStatus.KILLED: 137}
NOT_RUN = 125


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was typed. ``files`` and ``sources`` are ``PATH`` or ``NAME=PATH``."""

    file: Path
    args: tuple[str, ...] = ()
    language: str | None = None
    stdin: Path | None = None
    files: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    out: Path | None = None
    limits: Mapping[str, int | None] = field(default_factory=dict)


def run(settings: Settings, wanted: Wanted) -> int:
    """Run the program, pass on what it printed, keep what it left; its exit code.

    Raises:
        BadSettings: something that was typed cannot be.
        InvalidRequest: a source file in the place of another.
    """
    configure_logging("ERROR")
    request = make_request(settings, wanted)
    try:
        outcome = asyncio.run(run_local(settings, request))
    except HostUnfit as exc:
        typer.echo(f"code-executor: {exc.message}\nfix: {exc.fix}", err=True)
        return NOT_RUN
    except SandboxUnavailable as exc:
        typer.echo(f"code-executor: {exc.message}", err=True)
        return NOT_RUN
    _pass_on(outcome)
    if wanted.out is not None:
        _keep(outcome.artifacts, wanted.out)
    return exit_code(outcome)


def make_request(settings: Settings, wanted: Wanted) -> RunRequest:
    """What was typed, as a request.

    Raises:
        BadSettings: an unknown language, a limit above the maximum, a file that cannot be read.
    """
    language = _language(make_languages(settings), wanted)
    return RunRequest(
        language=language.id,
        code=_text(wanted.file),
        args=wanted.args,
        stdin=_stdin(wanted.stdin),
        env=tuple(_pair(entry) for entry in wanted.env),
        files=tuple(InputFile(n, content=_bytes(p)) for n, p in map(_named, wanted.files)),
        sources=tuple(SourceFile(n, _bytes(p)) for n, p in map(_named, wanted.sources)),
        limits=_limits(settings, wanted.limits),
    )


def exit_code(outcome: Outcome) -> int:
    """The exit code that stands for ``outcome``; see the module."""
    if outcome.status in _ENDED:
        return _ENDED[outcome.status]
    if outcome.exit_code is not None:
        return outcome.exit_code
    name = outcome.signal or "SIGKILL"
    return 128 + (signal.Signals[name] if name in signal.Signals.__members__ else signal.SIGKILL)


def _language(languages: Sequence[Language], wanted: Wanted) -> Language:
    names = by_name(languages)
    if wanted.language is not None:
        if wanted.language not in names:
            raise BadSettings(f"--language {wanted.language}: there are {_ids(languages)}")
        return names[wanted.language]
    suffix = wanted.file.suffix.lower()
    found = next((language for language in languages if suffix in language.suffixes), None)
    if found is None:
        raise BadSettings(f"{wanted.file.name}: say --language, one of {_ids(languages)}")
    return found


def _ids(languages: Sequence[Language]) -> str:
    return ", ".join(language.id for language in languages)


def _limits(settings: Settings, wanted: Mapping[str, int | None]) -> Limits:
    maximum = settings.maximum_limits()
    given = {name: value for name, value in wanted.items() if value is not None}
    for name, value in given.items():
        most = getattr(maximum, name)
        if not 1 <= value <= most:
            option = name.replace("_", "-")
            raise BadSettings(f"--{option} is {value}; it must be from 1 to {most}")
    return replace(settings.default_limits(), **given)


def _stdin(path: Path | None) -> str:
    if path is None:
        return ""
    return sys.stdin.read() if str(path) == "-" else _text(path)


def _text(path: Path) -> str:
    try:
        return _bytes(path).decode()
    except UnicodeDecodeError:
        raise BadSettings(f"{path} is not UTF-8 text") from None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise BadSettings(f"{path} cannot be read: {exc.strerror}") from None


def _pair(entry: str) -> tuple[str, str]:
    name, equals, value = entry.partition("=")
    if not equals or not name:
        raise BadSettings(f"--env {entry}: must be NAME=VALUE")
    return name, value


def _named(entry: str) -> tuple[str, Path]:
    """``NAME=PATH``, or ``PATH`` under its own name."""
    name, equals, path = entry.partition("=")
    if not equals:
        return Path(entry).name, Path(entry)
    if not _is_inside(name):
        raise BadSettings(f"{entry}: {name!r} must be a relative path without '..'")
    return name, Path(path)


def _is_inside(name: str) -> bool:
    parts = name.split("/")
    return all(part not in {"", ".", ".."} for part in parts)


def _pass_on(outcome: Outcome) -> None:
    """The program's streams on our own, byte for byte, then a word on how it ended."""
    sys.stdout.buffer.write(outcome.stdout.data)
    sys.stdout.buffer.flush()
    sys.stderr.buffer.write(outcome.stderr.data)
    sys.stderr.buffer.flush()
    if outcome.status in _ENDED or outcome.signal:
        because = outcome.limit_hit or outcome.reason or outcome.signal or ""
        typer.echo(f"code-executor: {outcome.status} {because}".rstrip(), err=True)
    for skipped in outcome.skipped:
        typer.echo(f"code-executor: outputs/{skipped.name} left out: {skipped.reason}", err=True)


def _keep(artifacts: Sequence[ArtifactFile], out: Path) -> None:
    """Write what the program left below ``out``; its names decide nothing outside of it."""
    for artifact in artifacts:
        if not _is_inside(artifact.name):
            typer.echo(f"code-executor: outputs/{artifact.name!r} left out: its name", err=True)
            continue
        path = out / PurePosixPath(artifact.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(artifact.content)
        typer.echo(f"code-executor: {path}", err=True)
