"""What a check is, how one is registered, and how a set of them is run."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

from code_executor.ports import Backend

Body = Callable[[Backend], Awaitable[None]]


class CheckFailed(AssertionError):
    """The backend broke a promise; the message says what was expected and what came."""


@dataclass(frozen=True, slots=True)
class Check:
    """One promise, tried. ``promise`` is its id in SECURITY.md; ``language`` is what it needs."""

    name: str
    title: str
    promise: str
    language: str
    body: Body


@dataclass(frozen=True, slots=True)
class Result:
    """How a check went. ``skipped`` says why it could not be tried, which is not passing."""

    check: Check
    passed: bool
    message: str = ""
    skipped: str | None = None
    seconds: float = 0.0


_CHECKS: dict[str, Check] = {}


def check(promise: str, *, language: str = "python") -> Callable[[Body], Body]:
    """Register a coroutine function as a check; its docstring's first line is the title."""

    def register(body: Body) -> Body:
        group = body.__module__.rpartition(".")[2]
        title = (body.__doc__ or "").partition("\n")[0].rstrip(".")
        add(Check(f"{group}.{body.__name__}", title, promise, language, body))
        return body

    return register


def add(item: Check) -> None:
    """Register a check that is made rather than written; two of one name is a mistake."""
    if item.name in _CHECKS:
        raise ValueError(f"two checks are called {item.name}")
    _CHECKS[item.name] = item


def registered() -> tuple[Check, ...]:
    """Every check, in the order of registration."""
    return tuple(_CHECKS.values())


async def run_check(item: Check, backend: Backend, available: Collection[str]) -> Result:
    """Try one check; a failure of the machinery is a failed check, with its message."""
    if item.language not in available:
        return Result(item, passed=False, skipped=f"{item.language} is not available here")
    started = time.monotonic()
    try:
        await item.body(backend)
    except Exception as exc:  # the suite reports whatever happened and goes on
        message = f"{type(exc).__name__}: {exc}"
        return Result(item, passed=False, message=message, seconds=time.monotonic() - started)
    return Result(item, passed=True, seconds=time.monotonic() - started)


async def run_all(
    backend: Backend, checks: Sequence[Check], *, only: Callable[[Check], bool] | None = None
) -> Sequence[Result]:
    """Try ``checks`` one after another on a started ``backend``; ``only`` selects among them."""
    available = {status.id for status in await backend.languages() if status.available}
    chosen = [item for item in checks if only is None or only(item)]
    return [await run_check(item, backend, available) for item in chosen]
