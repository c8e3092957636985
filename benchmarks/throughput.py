"""Many clients: sustained rates, and latency at half of them.

Theory of operation. A round measures every number of clients of the service once, and the
commands once with as many at a time as there are cores, and with twice that; the better counts.
``xargs -P`` starts the commands: it costs less than anything written in Python. For the service
the load generator is this process; what it takes of a core is in the results.

At half load, requests arrive by a Poisson process (and, for comparison, evenly spaced) at half
of the rate that eight clients sustained, whether or not earlier ones are answered.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.clients import Address, Load, closed_loop, open_loop
from benchmarks.place import Place
from benchmarks.programs import Program
from benchmarks.results import HalfLoad, Sustained
from benchmarks.service import run_request
from benchmarks.stats import median, ms, percentile
from benchmarks.subjects import RUN_S, Command

CLIENTS = (1, 2, 4, 8, 16, 64)
REFERENCE_CLIENTS = 8
SEED = 20_030_714


@dataclass(frozen=True, slots=True)
class Span:
    """How much to measure: rounds, and seconds of each measurement."""

    rounds: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Source:
    """Something that sustains a load: measured once a round, for ``seconds``."""

    subject: str
    clients: int
    sustain: Callable[[float], Load]


def measure(
    address: Address,
    commands: Sequence[Command],
    place: Place,
    program: Program,
    span: Span,
    say: Callable[[str], None],
) -> list[Sustained]:
    """The sustained rates of the service and of ``commands``, for ``program``."""
    sources = [*_of_service(address, program), *_of_commands(commands, place, program)]
    loads: list[list[Load]] = [[] for _ in sources]
    for number in range(span.rounds):
        say(f"throughput: round {number + 1} of {span.rounds}")
        for at in range(len(sources)):
            turn = (at + number) % len(sources)
            loads[turn].append(sources[turn].sustain(span.seconds))
    return [_row(source, load) for source, load in zip(sources, loads, strict=True)]


def _of_service(address: Address, program: Program) -> Iterator[_Source]:
    request = run_request(program)
    for clients in CLIENTS:
        yield _Source("service", clients, partial(closed_loop, address, request, clients))


def _of_commands(commands: Sequence[Command], place: Place, program: Program) -> Iterator[_Source]:
    cores = os.cpu_count() or 1
    for command in commands:
        argv = command.argv(program)
        for parallel in (cores, 2 * cores):
            yield _Source(command.name, parallel, partial(_saturate, argv, place, parallel))


def _saturate(argv: Sequence[str], place: Place, parallel: int, seconds: float) -> Load:
    """Run ``argv`` again and again, ``parallel`` at a time, for about ``seconds``."""
    calibration = _xargs(argv, place, parallel, 4 * parallel)
    count = max(parallel, round(seconds * 4 * parallel / calibration))
    elapsed = _xargs(argv, place, parallel, count)
    return Load([0.0] * count, elapsed)


def _xargs(argv: Sequence[str], place: Place, parallel: int, count: int) -> float:
    started = time.perf_counter()
    subprocess.run(
        ["xargs", "-P", str(parallel), "-n", "1", *argv],
        input=b"1\n" * count,  # xargs hands each line on as an argument; the programs ignore it
        stdout=subprocess.DEVNULL,
        cwd=place.work,
        env=place.environment(),
        timeout=RUN_S,
        check=True,
    )
    return time.perf_counter() - started


def _row(source: _Source, loads: Sequence[Load]) -> Sustained:
    rates = [load.rate for load in loads]
    row = Sustained(
        subject=source.subject,
        clients=source.clients,
        runs_per_s=round(median(rates), 2),
        rounds_per_s=[round(rate, 2) for rate in rates],
    )
    if source.subject != "service":
        return row
    samples = [sample for load in loads for sample in load.latencies]
    return Sustained(
        subject=row.subject,
        clients=row.clients,
        runs_per_s=row.runs_per_s,
        rounds_per_s=row.rounds_per_s,
        p50_ms=ms(percentile(samples, 50)),
        p99_ms=ms(percentile(samples, 99)),
        generator_share=round(median([load.own_share for load in loads]), 3),
    )


def half_load(
    address: Address, program: Program, sustained: float, span: Span, say: Callable[[str], None]
) -> list[HalfLoad]:
    """Latency when ``program`` arrives at half of ``sustained`` (runs per second)."""
    rate, chance = sustained / 2, random.Random(SEED)
    patterns: dict[str, Callable[[], Iterator[float]]] = {
        "Poisson": lambda: iter(lambda: chance.expovariate(rate), None),
        "even": lambda: iter(lambda: 1 / rate, None),
    }
    loads: dict[str, list[Load]] = {name: [] for name in patterns}
    for number in range(span.rounds):
        say(f"half load: round {number + 1} of {span.rounds}")
        for name, gaps in patterns.items():
            arrivals = list(_moments(gaps(), span.seconds))
            loads[name].append(open_loop(address, run_request(program), arrivals))
    return [_half_row(name, rate, loads[name]) for name in patterns]


def _moments(gaps: Iterator[float], seconds: float) -> Iterator[float]:
    moment = 0.0
    while moment < seconds:
        yield moment
        moment += next(gaps)


def _half_row(arrivals: str, rate: float, loads: Sequence[Load]) -> HalfLoad:
    p50s = [percentile(load.latencies, 50) for load in loads]
    p99s = [percentile(load.latencies, 99) for load in loads]
    return HalfLoad(
        arrivals=arrivals,
        offered_per_s=round(rate, 2),
        runs=sum(len(load.latencies) for load in loads),
        p50_ms=ms(median(p50s)),
        p99_ms=ms(median(p99s)),
        p99_over_p50=round(median([b / a for a, b in zip(p50s, p99s, strict=True)]), 3),
        generator_share=round(median([load.own_share for load in loads]), 3),
    )
