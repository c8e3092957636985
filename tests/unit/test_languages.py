"""Languages as data: the shipped files hold together, and a bad file is named with its key."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from code_executor import languages
from code_executor.languages import LanguageError, Warm, by_name, load, parse, resolve

MINIMAL = """
id = "lua"
name = "Lua"
source = "main.lua"
interpreters = ["/usr/bin/lua", "/usr/local/bin/lua"]
run = ["{interpreter}", "main.lua"]
version = ["{interpreter}", "-v"]
install = "apt-get install lua5.4"
probe = "print('ok')"

[[flavours]]
name = "lua"
"""


def test_the_five_languages_are_shipped() -> None:
    assert [language.id for language in load()] == ["go", "node", "php", "python", "ruby"]


def test_python_has_three_flavours_forked_from_a_zygote() -> None:
    python = by_name(load())["python"]
    assert [(f.name, f.warm) for f in python.flavours] == [
        ("python", Warm.ZYGOTE),
        ("python-std", Warm.ZYGOTE),
        ("python-data", Warm.ZYGOTE),
    ]
    assert "numpy" in python.flavours[2].preload


def test_go_compiles_first_and_may_have_more_processes() -> None:
    go = by_name(load())["golang"]
    assert go.compile
    assert go.processes == 256


def test_names_and_aliases_lead_to_the_language() -> None:
    named = by_name(load())
    assert named["js"] is named["javascript"] is named["node"]


def test_defaults_fill_what_a_file_leaves_out() -> None:
    lua = parse(MINIMAL, file="lua.toml")
    assert (lua.processes, lua.compile, lua.aliases, lua.flavours[0].warm) == (64, (), (), "none")


def test_resolve_puts_the_first_interpreter_that_exists() -> None:
    lua = parse(MINIMAL, file="lua.toml")
    (found,) = resolve([lua], lambda path: path == "/usr/local/bin/lua")
    assert found.run == ("/usr/local/bin/lua", "main.lua")
    assert found.version == ("/usr/local/bin/lua", "-v")
    assert found.interpreter == "/usr/local/bin/lua"


def test_resolve_keeps_the_first_candidate_where_none_exists() -> None:
    (missing,) = resolve([parse(MINIMAL, file="lua.toml")], lambda _path: False)
    assert missing.run[0] == "/usr/bin/lua"


def test_an_extra_directory_adds_and_replaces(tmp_path: Path) -> None:
    (tmp_path / "lua.toml").write_text(MINIMAL)
    shipped = Path(languages.__file__).with_name("ruby.toml").read_text()
    (tmp_path / "ruby.toml").write_text(shipped.replace('name = "Ruby"', 'name = "Own"'))
    (tmp_path / "README").write_text("not a language")
    named = by_name(load(tmp_path))
    assert named["lua"].name == "Lua"
    assert named["ruby"].name == "Own"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "Lua"', "", "lua.toml: name: missing"),
        ('name = "Lua"', 'name = ""', "lua.toml: name: must be a string that is not empty"),
        ('name = "Lua"', 'name = "Lua"\ncolour = 1', "lua.toml: colour: no such key"),
        ('name = "Lua"', 'name = "Lua"\nprocesses = 0', "lua.toml: processes: must be a whole"),
        ('name = "Lua"', 'name = "Lua"\nprocesses = true', "lua.toml: processes: must be a whole"),
        ('name = "Lua"', 'name = "Lua"\naliases = "l"', "lua.toml: aliases: must be a list"),
        ('name = "Lua"', 'name = "Lua"\nenv = {"a b" = "c"}', "lua.toml: env: must have valid"),
        ('id = "lua"', 'id = "Lua!"', "lua.toml: id: must be lower-case"),
        ('"main.lua"\ninter', '"a/main.lua"\ninter', "lua.toml: source: must be a plain"),
        ('run = ["{interpreter}"', 'run = ["lua"', "lua.toml: run: must start with an absolute"),
        ('name = "lua"', 'name = "lua"\nwarm = "hot"', "lua.toml: flavours: .*zygote, exec, none"),
        ('name = "lua"', 'name = "lua"\nimports = ["x"]', "lua.toml: flavours: must be distinct"),
        ('id = "lua"', 'id = "lua"\nbuilt_flavour = "x"', "lua.toml: built_flavour: must be one"),
        ("[[flavours]]", 'ahead_mb = 64\n[[flavours]]\nwarm = "exec"', "lua.toml: ahead_mb: needs"),
        ("[[flavours]]", "[[flavours", "lua.toml: not TOML"),
    ],
)
def test_a_bad_file_is_named_with_its_key(old: str, new: str, message: str) -> None:
    assert old in MINIMAL
    with pytest.raises(LanguageError, match=message):
        parse(MINIMAL.replace(old, new, 1), file="lua.toml")


def test_two_languages_cannot_share_a_name(tmp_path: Path) -> None:
    shutil.copy(Path(languages.__file__).with_name("ruby.toml"), tmp_path / "ruby.toml")
    (tmp_path / "lua.toml").write_text(MINIMAL.replace("source", 'aliases = ["rb"]\nsource', 1))
    with pytest.raises(LanguageError, match="rb: belongs to lua already"):
        load(tmp_path)
