"""From a request to a plan: everything a sandbox needs, decided before anything is done. Pure.

The directory of a run is ``/work``: the main source and the further ``sources`` in it, the
caller's files below ``inputs/``, what the program leaves below ``outputs/`` is returned.

Which flavour serves a Python program is told from its import statements, as the syntax tree has
them. Parsing happens in the service, on its event loop, and costs some 2 ms for each 1,000 bytes:
it is done only when the text mentions a module that matters, and a program longer than
:data:`PARSED_MAX` (or one that is no Python) is looked at as text instead. A wrong guess costs
time, never correctness: every flavour can import everything that is installed.
"""

from __future__ import annotations

import ast
import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from fnmatch import translate
from functools import lru_cache

from code_executor.errors import InvalidRequest
from code_executor.languages import Flavour, Language, Warm
from code_executor.model import Phase, Plan, RunRequest, SourceFile, StagedFile, Step

INPUTS = "inputs"
OUTPUTS = "outputs"
BUILD = ".bin"
RESERVED = frozenset({INPUTS, OUTPUTS, BUILD})

BASE_ENV = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/work",
    "TMPDIR": "/tmp",  # noqa: S108 - the sandbox's own, not the host's
    "LANG": "C.UTF-8",
}
DROPPED_ENV = ("LD_*", "GLIBC_TUNABLES", "GCONV_PATH", "BASH_ENV")
"""Variables that steer the loader or a shell before the program, whatever the language."""

PARSED_MAX = 16 * 1024
"""Length of the longest program that is parsed, in characters."""

_IMPORT = re.compile(r"(?:^|[;:])[ \t]*(?:from[ \t]+(\w+)|import[ \t]+([^\n#;]+))", re.MULTILINE)
_MODULE = re.compile(r"(?:^|,)[ \t]*(\w+)")


def make_plan(request: RunRequest, language: Language, *, inputs: Sequence[bytes]) -> Plan:
    """The plan of ``request``; ``inputs`` are the bytes of ``request.files``, in their order.

    Raises:
        InvalidRequest: a further source file is where the service puts something itself.
    """
    _check_sources(request.sources, language)
    flavour = choose_flavour(request.code, language)
    if request.limits.memory_mb < language.ahead_mb:  # what waits may be larger than it may be
        flavour = next(f for f in language.flavours if f.warm is Warm.NONE)
    env = make_env(request.env, language)
    return Plan(
        language=language.id,
        flavour=flavour.name,
        warm=_can_be_warm(flavour, language, request),
        steps=_steps(language),
        args=request.args,
        env=tuple(env.items()),
        stdin=request.stdin.encode(),
        files=_stage(request, language, inputs),
        limits=request.limits,
        processes=language.processes,
        builds=language.builds,
        built_flavour=language.built_flavour,
    )


def default_env(language: Language) -> dict[str, str]:
    """The environment of a program whose caller sets none."""
    return BASE_ENV | dict(language.env)


def make_env(wanted: Sequence[tuple[str, str]], language: Language) -> dict[str, str]:
    """The default environment with the caller's variables, those that are not allowed left out."""
    env = default_env(language)
    if wanted:
        dropped = _matcher(DROPPED_ENV + language.dropped_env)
        env |= {name: value for name, value in wanted if not dropped.match(name)}
    return env


def choose_flavour(code: str, language: Language) -> Flavour:
    """The last flavour that has a module which the code imports; the first one when none has."""
    if "import" not in code:
        return language.flavours[0]
    special = [flavour for flavour in language.flavours[1:] if _mentions(code, flavour.imports)]
    if not special:
        return language.flavours[0]
    imported = set(imported_modules(code))
    chosen = [flavour for flavour in special if not imported.isdisjoint(flavour.imports)]
    return chosen[-1] if chosen else language.flavours[0]


def imported_modules(code: str) -> Iterable[str]:
    """Top-level names of the modules that the import statements in ``code`` name."""
    try:
        if len(code) > PARSED_MAX:
            raise ValueError("too long to parse here")
        with warnings.catch_warnings(action="ignore"):  # of the program's, not of ours
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        yield from _imported_by_text(code)
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def _imported_by_text(code: str) -> Iterable[str]:
    """The same, as far as the text alone tells."""
    for statement in _IMPORT.finditer(code):
        yield from (name[1] for name in _MODULE.finditer(statement[1] or statement[2]))


def _mentions(code: str, names: Iterable[str]) -> bool:
    """A quick look before the slower one."""
    return any(name in code for name in names)


def _can_be_warm(flavour: Flavour, language: Language, request: RunRequest) -> bool:
    """Whether an interpreter started without this run's environment and files may serve it."""
    if flavour.warm is Warm.NONE or any(_shadows(s.path, flavour) for s in request.sources):
        return False
    return not (request.env and _is_late(make_env(request.env, language), language))


def _is_late(env: dict[str, str], language: Language) -> bool:
    """Whether it has a variable that an interpreter reads when it starts, and only then."""
    default, cold = default_env(language), _matcher(language.cold_env)
    return any(default.get(name) != value and cold.match(name) for name, value in env.items())


def _shadows(path: str, flavour: Flavour) -> bool:
    """Whether a source file has the name of a module that a zygote has imported already.

    ``import json`` beside a ``json.py`` takes that file in a new interpreter and the standard
    library's in one where it is loaded.
    """
    if flavour.warm is not Warm.ZYGOTE:
        return False
    name = path.partition("/")[0].partition(".")[0]
    loaded = {module.partition(".")[0] for module in flavour.preload}
    return name in sys.stdlib_module_names or name in loaded.union(flavour.imports, flavour.modules)


def _steps(language: Language) -> tuple[Step, ...]:
    run = Step(Phase.RUN, language.run)
    return (Step(Phase.COMPILE, language.compile), run) if language.compile else (run,)


def _stage(
    request: RunRequest, language: Language, inputs: Sequence[bytes]
) -> tuple[StagedFile, ...]:
    main = StagedFile(language.source, request.code.encode())
    sources = (StagedFile(source.path, source.content) for source in request.sources)
    files = (
        StagedFile(f"{INPUTS}/{file.path}", content)
        for file, content in zip(request.files, inputs, strict=True)
    )
    return (main, *sources, *files)


def _check_sources(sources: Sequence[SourceFile], language: Language) -> None:
    for index, source in enumerate(sources):
        first = source.path.partition("/")[0]
        if first == language.source or first in RESERVED:
            raise InvalidRequest(
                f"sources[{index}].path is {source.path!r}; {first!r} belongs to the service.",
                param=f"sources[{index}].path",
            )


@lru_cache(maxsize=64)
def _matcher(globs: tuple[str, ...]) -> re.Pattern[str]:
    """One expression that matches a whole name when one of ``globs`` does; none match nothing."""
    return re.compile("|".join(map(translate, globs)) or r"(?!)")
