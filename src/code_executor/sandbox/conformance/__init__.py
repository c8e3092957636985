"""The conformance suite: what every backend must do, as checks that run on a user's host.

A check is a coroutine that takes a started backend and raises when a promise is broken. Each
names the promise of SECURITY.md that it tries and the language it needs; each prepares its own
sandboxes and destroys them. The modules hold them by noun:

``contract``    streams, exit codes, signals, arguments, files in: what a program is given
``output``      the cap on output, floods, bytes that are not text
``artifacts``   files out: which are returned, which are skipped, what is never followed
``clocks``      wall and CPU time
``memory``      the memory limit in all the places where memory can hide
``processes``   fork bombs, daemons, what is left when a run is over
``isolation``   hostile attempts, one sandbox each (the programs are in ``attempts``)
``neighbours``  two runs at the same time, and one after another
``polyglot``    the same for Node.js, Ruby, PHP and Go

``probes`` runs the quick ones of the hostile attempts in a single sandbox, for the start of the
service. The suite passes on ``native`` and is the definition of a new backend being done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from code_executor.ports import Backend
from code_executor.sandbox.conformance import (
    artifacts,
    clocks,
    contract,
    isolation,
    memory,
    neighbours,
    output,
    polyglot,
    processes,
    registry,
)
from code_executor.sandbox.conformance.registry import Check, CheckFailed, Result, run_check

__all__ = ["CHECKS", "Check", "CheckFailed", "Result", "run_all", "run_check"]

_MODULES = (
    contract, output, artifacts, clocks, memory, processes, isolation, neighbours, polyglot,
)  # fmt: skip
CHECKS: tuple[Check, ...] = registry.registered()
"""Every check, in reading order of the modules."""


async def run_all(
    backend: Backend, *, only: Callable[[Check], bool] | None = None
) -> Sequence[Result]:
    """Try every check (those that ``only`` selects) on a started ``backend``."""
    return await registry.run_all(backend, CHECKS, only=only)
