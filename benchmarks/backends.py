"""What a sandbox prepared ahead saves, by backend: two services, asked in turn.

One keeps sandboxes warm, the other prepares each for its request (``WARM_POOL=0``). Between two
requests is a pause in which the first one's pool is filled again, as it is when people or agents
ask; back to back, one would measure the refilling.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.clients import Connection
from benchmarks.place import Place, Skipped
from benchmarks.programs import PROGRAMS, Program
from benchmarks.results import HeadStart
from benchmarks.service import languages, run_request, serving
from benchmarks.stats import median, ms, paired_ratio, timed

BACKENDS = ("native", "docker", "runc", "gvisor")
_NAMES = ("python", "node", "ruby", "php", "go-again", "go")


@dataclass(frozen=True, slots=True)
class Pace:
    """How many requests to each service, and how long to wait before each."""

    rounds: int
    pause_s: float


def measure(
    backend: str, place: Place, pace: Pace, say: Callable[[str], None]
) -> Sequence[HeadStart]:
    """The head start of each language's hello-world.

    Raises:
        Skipped: a service with this backend does not start here; says why.
    """
    say(f"{backend}: starting two services")
    settings = {"SANDBOX_BACKEND": backend, "WAIVE_PROMISES": "P4"}  # docker on cgroup v1
    warm_data, cold_data = (place.scratch / f"{backend}-{kind}" for kind in ("warm", "cold"))
    try:
        with (
            serving(place, warm_data, **settings, WARM_POOL="2") as warm,
            serving(place, cold_data, **settings, WARM_POOL="0") as cold,
        ):
            here = languages(warm.address)
            programs = [p for p in PROGRAMS if p.name in _NAMES and p.language in here]
            return [
                _of_program(backend, program, (warm.address, cold.address), pace, say)
                for program in sorted(programs, key=lambda each: _NAMES.index(each.name))
            ]
    except RuntimeError as failure:
        raise Skipped(str(failure).strip().rpartition("\n")[2][-300:]) from failure


def _of_program(
    backend: str,
    program: Program,
    addresses: tuple[tuple[str, int], tuple[str, int]],
    pace: Pace,
    say: Callable[[str], None],
) -> HeadStart:
    say(f"{backend}: {program.title}")
    pairs = list(_rounds(program, addresses, pace))
    warm, cold = ([pair[side] for pair in pairs] for side in (0, 1))
    return HeadStart(
        backend=backend,
        program=program.name,
        runs=len(pairs),
        warm_ms=ms(median(warm)),
        cold_ms=ms(median(cold)),
        ratio=round(paired_ratio(cold, warm), 2),
    )


def _rounds(
    program: Program, addresses: tuple[tuple[str, int], tuple[str, int]], pace: Pace
) -> Iterator[tuple[float, float]]:
    for number in range(-1, pace.rounds):
        times = []
        for side, address in enumerate(addresses):
            time.sleep(pace.pause_s)
            request = run_request(program, 2 * number + side)
            with Connection(address) as connection:
                times.append(timed(lambda: connection.call(request)))  # noqa: B023 - called at once
        if number >= 0:  # the first is for what is made once
            yield times[0], times[1]
