"""The command line of an init that a runtime starts."""

from __future__ import annotations

from pathlib import Path

from code_executor.languages import load
from code_executor.sandbox.build import Binaries
from code_executor.sandbox.contained import FILTER, INIT, ahead_files, init_command

LANGUAGES = {language.id: language for language in load()}


def options(language: str, **more: bool) -> list[str]:
    found = LANGUAGES[language]
    return init_command(found, found.flavours[0], processes=7, **more)


def test_python_is_started_ahead_for_a_single_run() -> None:
    argv = options("python", filtered=True)
    assert argv[:6] == [INIT, "--contained", "--processes", "7", "--filter", FILTER]
    assert "CE_SINGLE=1" in argv
    assert argv[argv.index("--warm") + 1] == "main.py"
    assert argv[-1] == LANGUAGES["python"].run[-1]


def test_node_is_started_ahead_with_its_bootstrap() -> None:
    argv = options("node")
    assert "--filter" not in argv
    assert "/opt/ahead/node.js" in argv[argv.index("--warm") :]


def test_the_compile_step_of_go_is_started_ahead() -> None:
    argv = options("go")
    assert argv[argv.index("--warm") + 1] == "main.go"
    assert argv[-1] == "/opt/go/ahead.sh"


def test_nothing_is_started_ahead_for_a_go_program_that_is_built() -> None:
    go = LANGUAGES["go"]
    (built,) = (flavour for flavour in go.flavours if flavour.name == go.built_flavour)
    assert init_command(go, built, processes=7) == [INIT, "--contained", "--processes", "7"]


def test_every_file_that_a_bootstrap_is_called_by_is_put_there() -> None:
    found = ahead_files(Binaries(Path("launcher"), Path("zygote.so"), Path("node.so")))
    assert found["opt/ahead/init"] == Path("launcher")
    assert found["opt/ahead/node.so"] == Path("node.so")
    called = {
        word[1:] for each in LANGUAGES.values() for word in each.ahead if "/opt/ahead" in word
    }
    named = {word.partition("=")[2][1:] if "=" in word else word for word in called}
    assert named <= found.keys()
