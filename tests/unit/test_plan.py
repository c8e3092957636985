"""From a request to a plan: environment, files, flavour, warm or cold."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from code_executor.errors import InvalidRequest
from code_executor.languages import Language, by_name, load, resolve
from code_executor.model import (
    DEFAULT_LIMITS,
    InputFile,
    Limits,
    Phase,
    Plan,
    RunRequest,
    SourceFile,
    StagedFile,
    Step,
)
from code_executor.plan import choose_flavour, default_env, imported_modules, make_env, make_plan

LANGUAGES = by_name(resolve(load(), lambda _path: True))
PYTHON = LANGUAGES["python"]
GO = LANGUAGES["go"]
IDS = ["go", "node", "php", "python", "ruby"]

names = st.from_regex(r"[A-Z_][A-Z0-9_]{0,12}", fullmatch=True)
texts = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=20)


def plan(code: str = "print(1)", language: Language = PYTHON, **fields: object) -> Plan:
    request = RunRequest(language.id, code, **fields)  # type: ignore[arg-type]  # the tests' own
    return make_plan(request, language, inputs=[b"%d" % i for i, _ in enumerate(request.files)])


def test_a_plan_is_everything_a_sandbox_needs() -> None:
    made = plan(
        args=("-x", "\u00e9"),
        stdin="caf\u00e9",
        files=(InputFile("data/a.csv", content=b"0"), InputFile("b", file_id="file_1")),
        sources=(SourceFile("pkg/mod.py", b"x"),),
        limits=Limits(timeout_ms=7),
    )
    assert made.steps == (Step(Phase.RUN, ("/opt/python/bin/python3", "main.py")),)
    assert made.args == ("-x", "\u00e9")
    assert made.stdin == b"caf\xc3\xa9"
    assert made.files == (
        StagedFile("main.py", b"print(1)"),
        StagedFile("pkg/mod.py", b"x"),
        StagedFile("inputs/data/a.csv", b"0"),
        StagedFile("inputs/b", b"1"),
    )
    assert (made.limits.timeout_ms, made.processes) == (7, 64)
    assert (made.language, made.flavour, made.warm) == ("python", "python", True)


def test_go_is_compiled_and_then_run() -> None:
    made = plan("package main", GO)
    assert [step.phase for step in made.steps] == [Phase.COMPILE, Phase.RUN]
    assert all(step.argv[0].startswith("/") for step in made.steps)
    assert (made.flavour, made.warm, made.processes) == ("go", True, 256)


def test_a_small_go_program_is_not_charged_for_what_waits() -> None:
    made = plan("package main", GO, limits=replace(DEFAULT_LIMITS, memory_mb=32))
    assert [step.phase for step in made.steps] == [Phase.COMPILE, Phase.RUN]
    assert (made.flavour, made.warm) == ("go-built", False)


@pytest.mark.parametrize("language", IDS)
def test_the_default_environment_is_complete(language: str) -> None:
    env = dict(plan(language=LANGUAGES[language]).env)
    assert (env["HOME"], env["TMPDIR"], env["LANG"]) == ("/work", "/tmp", "C.UTF-8")
    assert env["PATH"].endswith("/usr/local/bin:/usr/bin:/bin")


@given(language=st.sampled_from(IDS), wanted=st.dictionaries(names, texts, max_size=5))
def test_what_the_caller_sets_is_set_unless_dropped(language: str, wanted: dict[str, str]) -> None:
    made = LANGUAGES[language]
    env = make_env(tuple(wanted.items()), made)
    assert env.keys() <= default_env(made).keys() | wanted.keys()
    assert default_env(made).keys() <= env.keys()
    for name in wanted.keys() & env.keys():
        assert env[name] in (wanted[name], default_env(made).get(name))


@pytest.mark.parametrize(
    ("language", "name"),
    [
        *((language, "LD_PRELOAD") for language in IDS),
        *((language, "LD_LIBRARY_PATH") for language in IDS),
        *((language, "BASH_ENV") for language in IDS),
        ("python", "PYTHONHOME"),
        ("node", "NODE_OPTIONS"),
        ("ruby", "RUBYOPT"),
        ("ruby", "RUBYLIB"),
        ("php", "PHPRC"),
        ("php", "PHP_INI_SCAN_DIR"),
        ("go", "GOFLAGS"),
        ("go", "GOROOT"),
        ("go", "GOTOOLCHAIN"),
        ("go", "CGO_CFLAGS"),
    ],
)
def test_what_would_change_the_runner_is_dropped(language: str, name: str) -> None:
    assert name not in make_env([(name, "x")], LANGUAGES[language])


def test_a_name_that_only_contains_a_dropped_one_is_kept() -> None:
    assert make_env([("OLD_LD_PATH", "x"), ("ld_x", "y")], PYTHON)["OLD_LD_PATH"] == "x"


@pytest.mark.parametrize(
    ("env", "warm"),
    [
        ((), True),
        ((("GREETING", "hi"),), True),
        ((("PYTHONHASHSEED", "0"),), False),
        ((("PYTHONPATH", "/work/lib"),), False),
        ((("LC_ALL", "C"),), False),
        ((("LANG", "C.UTF-8"),), True),
        ((("LANG", "C"),), False),
        ((("OMP_NUM_THREADS", "1"),), True),
        ((("OMP_NUM_THREADS", "2"),), False),
        ((("LD_PRELOAD", "x.so"),), True),
    ],
)
def test_what_is_read_at_interpreter_start_needs_a_cold_one(
    env: tuple[tuple[str, str], ...], warm: bool
) -> None:
    assert plan(env=env).warm is warm


@pytest.mark.parametrize(
    ("path", "warm"),
    [
        ("helper.py", True),
        ("lib/json.py", True),
        ("json.py", False),
        ("json/__init__.py", False),
        ("sqlite3.py", False),
        ("numpy.py", True),
        ("typing.pyi", False),
    ],
)
def test_a_source_that_hides_a_loaded_module_needs_a_cold_one(path: str, warm: bool) -> None:
    assert plan(sources=(SourceFile(path, b""),)).warm is warm


def test_a_source_hides_only_modules_of_its_own_flavour() -> None:
    hiding = (SourceFile("six.py", b""),)
    assert plan("import os", sources=hiding).warm is True
    assert plan("import numpy", sources=hiding).warm is False


def test_sources_beside_other_languages_do_not_matter() -> None:
    assert plan("", LANGUAGES["node"], sources=(SourceFile("json.js", b""),)).warm is True


@pytest.mark.parametrize(
    ("code", "flavour"),
    [
        ("print('numpy')", "python"),
        ("import os, sys", "python"),
        ("import numpy", "python-data"),
        ("import os, numpy as np", "python-data"),
        ("from pandas.core import x", "python-data"),
        ("x = 1; import matplotlib.pyplot as plt", "python-data"),
        ("try:\n    import pandas\nexcept ImportError:\n    pass", "python-data"),
        ("if 1: import numpy", "python-data"),
        ("from numpy import (\n  array)", "python-data"),
        ("import numpy_financial", "python"),
        ("from x import numpy", "python"),
        ("def f(:\n import os", "python"),
        ("# numpy is not needed", "python"),
        ("text = '''\nimport numpy\n'''", "python"),
        ("print('\\d')\nimport numpy", "python-data"),
        ("x = 1\n" * 4000 + "import numpy", "python-data"),
    ],
)
def test_the_flavour_follows_the_imports(code: str, flavour: str) -> None:
    assert choose_flavour(code, PYTHON).name == flavour


@given(st.text())
def test_any_text_has_a_flavour(code: str) -> None:
    assert choose_flavour("numpy\n" + code, PYTHON) in PYTHON.flavours


@given(st.lists(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), min_size=1, max_size=5))
def test_every_module_of_an_import_statement_is_found(modules: list[str]) -> None:
    code = "import " + ", ".join(f"{module}.sub as x" for module in modules)
    assert set(imported_modules(code)) == set(modules)


@pytest.mark.parametrize(
    "path", ["main.py", "main.py/x", "inputs/a", "inputs", "outputs/a", ".bin"]
)
def test_a_source_may_not_be_where_the_service_puts_something(path: str) -> None:
    with pytest.raises(InvalidRequest, match="belongs to the service") as caught:
        plan(sources=(SourceFile("a.py", b""), SourceFile(path, b"")))
    assert caught.value.param == "sources[1].path"
