"""Every case of a language, handwritten and generated, and the plan that is made of it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from tests.acceptance import corpus, families

from code_executor import languages
from code_executor.model import MAXIMUM_LIMITS, InputFile, Plan, RunRequest, SourceFile
from code_executor.plan import make_plan

LANGUAGES = ("python", "node", "ruby", "php", "go")


def cases(language: str) -> list[corpus.Case]:
    """The corpus of ``language``."""
    generated = families.python() if language == "python" else []
    return [*corpus.load(language), *generated]


def plan_of(case: corpus.Case) -> Plan:
    """The plan of ``case``, by the same code that plans a request; every limit at its maximum."""
    request = RunRequest(
        language=case.language,
        code=case.code,
        args=case.args,
        stdin=case.stdin,
        env=tuple(case.env.items()),
        files=tuple(InputFile(path=path, content=data) for path, data in case.files.items()),
        sources=tuple(SourceFile(path, text.encode()) for path, text in case.sources.items()),
        limits=MAXIMUM_LIMITS,
    )
    return make_plan(request, known()[case.language], inputs=tuple(case.files.values()))


@cache
def known() -> dict[str, languages.Language]:
    """The shipped languages by id, with the interpreters of this host."""
    here = languages.resolve(languages.load(), lambda path: Path(path).exists())
    return languages.by_name(here)
