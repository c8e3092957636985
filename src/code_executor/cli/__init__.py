"""The command line: ``code-executor serve | run | check | languages``.

Each command's work is in a module of its own, imported when it is called: the help must not wait
for a web framework. Exit codes: 0 done, 1 this host or a program says no, 2 a mistake in what was
typed or set, 130 interrupted. ``run`` exits as the program did (see ``run.py``).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from code_executor import __version__
from code_executor.config import BadSettings, Settings
from code_executor.errors import HostUnfit, ServiceError

ANY_SETTING = {"allow_extra_args": True, "ignore_unknown_options": True}
SECRET = ("api_keys", "signing_key", "database_url", "storage_url")

app = typer.Typer(
    name="code-executor",
    help="Runs untrusted programs in hardened, limited, single-use sandboxes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Config = Annotated[
    Path | None, typer.Option(help="A file of NAME=value lines; the environment wins over it.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> NoReturn:
    """The entry point. What the service says about itself becomes a message and an exit code."""
    try:
        sys.exit(app())
    except BadSettings as exc:
        fail(str(exc), code=2)
    except HostUnfit as exc:
        fail(f"{exc.message}\nfix: {exc.fix}", code=1)
    except ServiceError as exc:
        fail(exc.message, code=1)
    except KeyboardInterrupt:
        sys.exit(130)


def fail(message: str, *, code: int) -> NoReturn:
    """Print ``message`` on standard error and exit with ``code``."""
    typer.echo(f"code-executor: {message}", err=True)
    sys.exit(code)


def read_settings(config: Path | None, extra: Sequence[str] = (), **flags: object) -> Settings:
    """The settings, with ``extra`` words ``--any-setting VALUE`` or ``--any-setting=VALUE``.

    Raises:
        BadSettings: a word that is no setting's flag, or a value that is not allowed.
    """
    return Settings.load(config, **_flags(extra), **flags)


def _flags(words: Sequence[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    rest = list(words)
    while rest:
        word, equals, value = rest.pop(0).partition("=")
        name = word.removeprefix("--").replace("-", "_")
        if not word.startswith("--") or name not in Settings.model_fields:
            raise BadSettings(f"{word}: there is no such option")
        if name in SECRET:
            raise BadSettings(
                f"{name.upper()} may hold a secret, and others can read a command line: "
                "set it in the environment or in the file of --config"
            )
        if not equals and not rest:
            raise BadSettings(f"{word} needs a value")
        given[name] = value if equals else rest.pop(0)
    return given


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"code-executor {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    del version


@app.command(context_settings=ANY_SETTING)
def serve(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0: a free one.")] = None,
    config: Config = None,
) -> None:
    """Serve the HTTP API until interrupted.

    Every setting of docs/settings.md is an option: MAX_CONCURRENCY is --max-concurrency.
    """
    from code_executor.cli.serve import serve as run_server

    run_server(read_settings(config, context.args, host=host, port=port))


@app.command(context_settings={"allow_interspersed_args": False})
def run(
    file: Annotated[Path, typer.Argument(help="The program.", exists=True, dir_okay=False)],
    args: Annotated[list[str] | None, typer.Argument(help="Its arguments.")] = None,
    language: Annotated[
        str | None, typer.Option(help="Its language; told from the name otherwise.")
    ] = None,
    stdin: Annotated[
        Path | None, typer.Option(help="What it reads on standard input; - for one's own.")
    ] = None,
    input_file: Annotated[
        list[str] | None,
        typer.Option("--file", help="PATH or NAME=PATH: a file to find as inputs/NAME."),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(help="PATH or NAME=PATH: a further source file beside the program."),
    ] = None,
    env: Annotated[list[str] | None, typer.Option(help="NAME=VALUE in its environment.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory for the files it leaves in outputs.")
    ] = None,
    timeout_ms: Annotated[int | None, typer.Option(help="Wall time it may take.")] = None,
    cpu_ms: Annotated[int | None, typer.Option(help="CPU time it may take.")] = None,
    memory_mb: Annotated[int | None, typer.Option(help="Memory it may take, MiB.")] = None,
    config: Config = None,
) -> None:
    """Run one program in a sandbox, without the server, and exit as it did."""
    from code_executor.cli.run import Wanted
    from code_executor.cli.run import run as run_program

    wanted = Wanted(
        file=file,
        args=tuple(args or ()),
        language=language,
        stdin=stdin,
        files=tuple(input_file or ()),
        sources=tuple(source or ()),
        env=tuple(env or ()),
        out=out,
        limits={"timeout_ms": timeout_ms, "cpu_ms": cpu_ms, "memory_mb": memory_mb},
    )
    sys.exit(run_program(read_settings(config), wanted))


@app.command(context_settings=ANY_SETTING)
def check(
    context: typer.Context,
    full: Annotated[bool, typer.Option("--full", help="The conformance suite as well.")] = False,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Say promise by promise what this host keeps, and how to fix what it does not.

    Exits 1 if a promise is neither kept nor waived, or no language is available.
    """
    from code_executor.cli.check import check as check_host

    settings = read_settings(config, context.args)
    sys.exit(0 if check_host(settings, full=full, as_json=as_json) else 1)


@app.command(context_settings=ANY_SETTING)
def languages(context: typer.Context, as_json: Json = False, config: Config = None) -> None:
    """List the languages, their versions, and why one is not available."""
    from code_executor.cli.check import list_languages

    list_languages(read_settings(config, context.args), as_json=as_json)
