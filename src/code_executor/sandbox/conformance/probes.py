"""The probes at the start of the service: the quick hostile attempts, in one real sandbox."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from code_executor.model import Promise
from code_executor.ports import Backend
from code_executor.sandbox.conformance.isolation import Verdict, try_attempts

TITLES = {
    "P1": "no network, host file, host process or kernel interface beyond the allow-list",
    "P2": "nothing of a run outlives it",
    "P4": "memory, processes, descriptors, disk and output are bounded",
    "P5": "files cross the boundary as plain bytes",
    "P6": "runs neither see nor influence each other",
    "P7": "no secret of the service is in a sandbox",
}


async def probe(backend: Backend) -> Sequence[Promise]:
    """Try the quick attempts on a started ``backend``; one row for each promise they touch.

    Raises:
        SandboxUnavailable: no sandbox could be had.
    """
    verdicts = sorted(await try_attempts(backend, "quick"), key=lambda verdict: verdict.promise)
    return [_promise(key, list(group)) for key, group in groupby(verdicts, lambda v: v.promise)]


def _promise(promise: str, verdicts: Sequence[Verdict]) -> Promise:
    broken = [f"{verdict.name}: {verdict.detail}" for verdict in verdicts if not verdict.held]
    evidence = "; ".join(broken) or f"{len(verdicts)} hostile attempts were held back"
    return Promise(promise, TITLES[promise], kept=not broken, evidence=evidence)
