"""The targets, each judged from what was measured in the same go."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.results import Results, Verdict
from benchmarks.stats import paired_ratio
from benchmarks.throughput import REFERENCE_CLIENTS

SOAK_RUNS = 100_000
FLAT = 1.2
"""What still counts as the same, at the end of a soak against its beginning."""


@dataclass(frozen=True, slots=True)
class _Target:
    what: str
    compare: str
    bound: float
    unit: str
    measured: Callable[[Results], float | None]

    def judge(self, results: Results) -> Verdict:
        value = self.measured(results)
        reached = None if value is None else _COMPARE[self.compare](value, self.bound)
        rounded = None if value is None else round(value, 3)
        return Verdict(
            self.what, f"{self.compare} {self.bound:g} {self.unit}", rounded, self.unit, reached
        )


_COMPARE: dict[str, Callable[[float, float], bool]] = {"≤": operator.le, "≥": operator.ge}


def judge(results: Results) -> list[Verdict]:
    """Every target, whether or not it was measured."""
    return [target.judge(results) for target in _targets()]


def _targets() -> Iterator[_Target]:
    against_bare = (
        ("`print(1+1)` through HTTP, one client, against bare `python3 -c`", "python", 0.25),
        ("pandas script against the same under bare Python", "pandas", 0.05),
        ("Node.js hello-world against bare", "node", 0.25),
        ("Ruby hello-world against bare", "ruby", 0.25),
        ("PHP hello-world against bare", "php", 0.5),
    )
    for what, program, bound in against_bare:
        yield _Target(what, "≤", bound, "×", _ratio(program, program))
    yield _Target(
        "Go hello-world, never seen before, against `go run` with warm cache",
        "≤", 0.45, "×", _ratio("go", "go-again"),
    )  # fmt: skip
    yield _Target(
        f"sustained runs/s at {REFERENCE_CLIENTS} clients against bare `python3 -c` "
        "saturating the cores", "≥", 3, "×", _sustained,
    )  # fmt: skip
    yield _Target("p99 against p50 at half of the sustained rate", "≤", 4, "×", _tail)
    yield _Target("times faster than `docker run` per request", "≥", 100, "×", _docker)
    yield _Target("private memory of a warm Python sandbox", "≤", 6, "MB", _sandbox)
    yield _Target(
        f"latency and memory after {SOAK_RUNS:,} runs against before (flat)",
        "≤", FLAT, "×", _soak,
    )  # fmt: skip


def _ratio(ours: str, theirs: str) -> Callable[[Results], float | None]:
    def measured(results: Results) -> float | None:
        service = results.find_latency(ours, "service")
        bare = results.find_latency(theirs, "bare")
        if service is None or bare is None:
            return None
        return paired_ratio(service.rounds_ms, bare.rounds_ms)

    return measured


def _sustained(results: Results) -> float | None:
    service = results.find_sustained("service", REFERENCE_CLIENTS)
    bare = results.best_sustained("bare")
    if service is None or bare is None:
        return None
    return paired_ratio(service.rounds_per_s, bare.rounds_per_s)


def _tail(results: Results) -> float | None:
    """Poisson arrivals: the harder of the two."""
    rows = (row.p99_over_p50 for row in results.half_load if row.arrivals == "Poisson")
    return next(rows, None)


def _docker(results: Results) -> float | None:
    service = results.find_latency("python", "service")
    docker = results.find_latency("python", "docker")
    if service is None or docker is None:
        return None
    return paired_ratio(docker.rounds_ms, service.rounds_ms)


def _sandbox(results: Results) -> float | None:
    """The larger of what its processes have to themselves and what its group was charged."""
    rows = (row for row in results.sandboxes if row.flavour == "python")
    return next((max(row.private_mb, row.charged_mb or 0.0) for row in rows), None)


def _soak(results: Results) -> float | None:
    """The worse of latency and memory; the mean of the first three steps with the last three.

    What is on disk grows with what is kept, until runs expire; the report shows it.
    """
    steps = results.soak
    if not steps or steps[-1].runs < SOAK_RUNS:
        return None
    first, last = steps[1:4], steps[-3:]
    columns: Sequence[Callable[[int], tuple[float, float]]] = (
        lambda at: (first[at].p50_ms, last[at].p50_ms),
        lambda at: (first[at].pss_mb, last[at].pss_mb),
    )
    return max(
        sum(column(at)[1] for at in range(3)) / sum(column(at)[0] for at in range(3))
        for column in columns
    )
