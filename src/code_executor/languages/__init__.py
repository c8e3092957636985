"""The languages, as data: one TOML file each beside this module.

A file says how a program of the language is named, compiled and run *inside* a sandbox, which
environment variables a caller may not set, and which kinds of prepared sandbox ("flavours")
serve it. Adding a language adds a file and changes no Python. Every key is a field of
:class:`Language` or :class:`Flavour`; a mistake is a :class:`LanguageError` that names the file
and the key.

``{interpreter}`` in an argument vector stands for the first of ``interpreters`` that exists on
this host (:func:`resolve`), so the vectors are plain paths by the time a plan is made.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from enum import StrEnum
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

INTERPRETER = "{interpreter}"
_ID = re.compile(r"[a-z][a-z0-9-]{0,31}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class LanguageError(ValueError):
    """A language file that cannot be used; the message names the file and the key."""


class Warm(StrEnum):
    """How a flavour's interpreter is ready before the run comes."""

    ZYGOTE = "zygote"
    """Forked from an interpreter that has the usual modules already."""
    EXEC = "exec"
    """Started ahead inside the sandbox, waiting for the program."""
    NONE = "none"
    """Not at all: only the sandbox is prepared."""


@dataclass(frozen=True, slots=True)
class Flavour:
    """One kind of prepared sandbox.

    ``imports``: a program that imports one of these modules takes this flavour.
    ``preload``: the modules that a zygote of this flavour imports before it forks.
    ``modules``: further modules that ``preload`` brings along; a source file of such a
    name would not be imported by a warm interpreter, so that run starts cold.
    """

    name: str
    warm: Warm = Warm.NONE
    imports: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Language:
    """A language; paths are inside the sandbox, where the program's directory is ``/work``.

    ``run`` and ``compile`` are argument vectors, the program's own arguments not
    included; ``ahead`` starts the interpreter of an ``exec`` flavour before the run is
    known (where there is ``compile``: that step instead), with a bootstrap under ``/opt/ahead``
    that waits for it, which a run of less than ``ahead_mb`` of memory does without;
    ``version`` prints a line that holds the version; ``builds`` is the file that ``compile``
    makes, where it alone decides what ``run`` does (relative to ``/work``), ``built_flavour`` the
    flavour for a program that is built already; ``packages`` prints the
    preinstalled packages, one a line; ``probe`` is a program that must print ``ok``.
    ``suffixes`` tells the command line which files are of this language.
    ``dropped_env`` and ``cold_env`` are globs: variables that a caller may not set, and
    variables that are only read while an interpreter starts.
    """

    id: str
    name: str
    source: str
    interpreters: tuple[str, ...]
    run: tuple[str, ...]
    version: tuple[str, ...]
    install: str
    probe: str
    flavours: tuple[Flavour, ...]
    aliases: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    compile: tuple[str, ...] = ()
    builds: str = ""
    built_flavour: str = ""
    ahead: tuple[str, ...] = ()
    ahead_mb: int = 0
    packages: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    processes: int = 64
    dropped_env: tuple[str, ...] = ()
    cold_env: tuple[str, ...] = ()

    @property
    def interpreter(self) -> str:
        """The interpreter chosen by :func:`resolve`, or the first candidate before that."""
        return self.interpreters[0]


class _Directory(Protocol):
    """The part of ``Path`` that package data has too."""

    def iterdir(self) -> Iterable[Any]: ...


def load(extra: Path | None = None) -> tuple[Language, ...]:
    """Every shipped language and those in the directory ``extra``, sorted by id.

    A file in ``extra`` with the id of a shipped language replaces it.

    Raises:
        LanguageError: a file is malformed, or two languages claim one name.
    """
    found = {language.id: language for language in _read(files(__name__))}
    if extra is not None:
        found.update({language.id: language for language in _read(extra)})
    languages = tuple(found[key] for key in sorted(found))
    _refuse_shared_names(languages)
    return languages


def parse(text: str, *, file: str) -> Language:
    """One language from the text of its TOML file; ``file`` is its name, for messages.

    Raises:
        LanguageError: the text is not TOML or breaks a rule.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise LanguageError(f"{file}: not TOML: {exc}") from None
    language = Language(**_values(Language, table, file))
    _check(language, file)
    return language


def resolve(languages: Sequence[Language], exists: Callable[[str], bool]) -> tuple[Language, ...]:
    """The languages with ``{interpreter}`` replaced by the first candidate that ``exists``.

    ``exists`` answers for a path as seen inside a sandbox. Where no candidate exists the
    first stays, and running it fails with a message that names it.
    """
    return tuple(_with_interpreter(item, _first(item.interpreters, exists)) for item in languages)


def by_name(languages: Iterable[Language]) -> dict[str, Language]:
    """Ids and aliases to languages."""
    return {name: item for item in languages for name in (item.id, *item.aliases)}


def _first(candidates: Sequence[str], exists: Callable[[str], bool]) -> str:
    return next((path for path in candidates if exists(path)), candidates[0])


def _with_interpreter(language: Language, path: str) -> Language:
    def fill(argv: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(path if word == INTERPRETER else word for word in argv)

    return replace(
        language,
        interpreters=(path,),
        run=fill(language.run),
        compile=fill(language.compile),
        ahead=fill(language.ahead),
        version=fill(language.version),
        packages=fill(language.packages),
    )


def _read(directory: _Directory) -> Iterable[Language]:
    for entry in directory.iterdir():
        if entry.name.endswith(".toml"):
            yield parse(entry.read_text(encoding="utf-8"), file=entry.name)


def _values(kind: type[Language] | type[Flavour], table: Mapping[str, Any], file: str) -> Any:
    """The table's values as constructor arguments of ``kind``, each of the declared type."""
    kinds = {field.name: str(field.type) for field in fields(kind)}
    for key in table:
        if key not in kinds:
            raise LanguageError(f"{file}: {key}: no such key")
    required = {field.name for field in fields(kind) if field.default is MISSING}
    for key in sorted(required - table.keys()):
        raise LanguageError(f"{file}: {key}: missing")
    return {key: _value(kinds[key], value, f"{file}: {key}") for key, value in table.items()}


def _value(declared: str, value: Any, where: str) -> Any:
    try:
        return _CONVERT[declared](value, where)
    except (TypeError, ValueError) as exc:
        if isinstance(exc, LanguageError):
            raise
        raise LanguageError(f"{where}: {exc}") from None


def _text(value: Any, _where: str) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError("must be a string that is not empty")
    return value


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError("must be a list of strings")
    return tuple(_text(item, where) for item in value)


def _number(value: Any, _where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise TypeError("must be a whole number above 0")
    return value


def _pairs(value: Any, where: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise TypeError("must be a table of strings")
    return tuple((key, _text(item, where)) for key, item in value.items())


def _flavours(value: Any, where: str) -> tuple[Flavour, ...]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise TypeError("must be a list of tables")
    return tuple(Flavour(**_values(Flavour, item, where)) for item in value)


def _warm(value: Any, _where: str) -> Warm:
    try:
        return Warm(value)
    except ValueError:
        raise TypeError(f"must be one of {', '.join(Warm)}") from None


_CONVERT: Mapping[str, Callable[[Any, str], Any]] = {
    "str": _text,
    "int": _number,
    "Warm": _warm,
    "tuple[str, ...]": _texts,
    "tuple[tuple[str, str], ...]": _pairs,
    "tuple[Flavour, ...]": _flavours,
}


def _check(language: Language, file: str) -> None:
    """The rules that need more than one value's type."""
    rules: Sequence[tuple[str, bool, str]] = (
        ("id", bool(_ID.fullmatch(language.id)), "must be lower-case letters, digits and dashes"),
        ("source", _plain(language.source), "must be a plain file name"),
        ("interpreters", _absolute(language.interpreters), "must be absolute paths"),
        ("run", _command(language.run), "must start with an absolute path"),
        ("compile", not language.compile or _command(language.compile), "must start likewise"),
        ("builds", not language.builds or bool(language.compile), "needs compile"),
        ("ahead_mb", not language.ahead_mb or _has_cold(language), "needs a flavour of warm none"),
        ("built_flavour", _built_flavour_ok(language), "must be one that is not warm"),
        ("version", _command(language.version), "must start with an absolute path"),
        ("env", all(_NAME.fullmatch(key) for key, _ in language.env), "must have valid names"),
        ("flavours", _flavours_ok(language), "must be distinct, and only the last ones may import"),
    )
    for key, holds, rule in rules:
        if not holds:
            raise LanguageError(f"{file}: {key}: {rule}")


def _plain(name: str) -> bool:
    return PurePosixPath(name).name == name and name not in {".", ".."}


def _is_absolute(path: str) -> bool:
    return path.startswith("/")


def _absolute(paths: Sequence[str]) -> bool:
    return bool(paths) and all(map(_is_absolute, paths))


def _command(argv: Sequence[str]) -> bool:
    return bool(argv) and (argv[0] == INTERPRETER or _is_absolute(argv[0]))


def _flavours_ok(language: Language) -> bool:
    """The first flavour is the default one and so has no ``imports``; names differ."""
    names = [flavour.name for flavour in language.flavours]
    return (
        bool(names)
        and len(set(names)) == len(names)
        and not language.flavours[0].imports
        and all(f.imports or f.name == language.built_flavour for f in language.flavours[1:])
    )


def _has_cold(language: Language) -> bool:
    return any(flavour.warm is Warm.NONE for flavour in language.flavours)


def _built_flavour_ok(language: Language) -> bool:
    """What waits in a sandbox waits for sources, so a binary needs one in which nothing does."""
    if not language.built_flavour:
        return True
    chosen = [f for f in language.flavours if f.name == language.built_flavour]
    return bool(language.builds) and [f.warm for f in chosen] == [Warm.NONE]


def _refuse_shared_names(languages: Sequence[Language]) -> None:
    owner: dict[str, str] = {}
    for language in languages:
        names = {language.id, *language.aliases, *(f"flavour {f.name}" for f in language.flavours)}
        for name in sorted(names):
            other = owner.setdefault(name, language.id)
            if other != language.id:
                raise LanguageError(f"{language.id}.toml: {name}: belongs to {other} already")
