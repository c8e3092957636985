"""One client: how long a run takes, subject by subject.

Theory of operation. A round gives every program to every subject for a short slot, in which it
runs again and again, back to back; the order of the subjects turns from round to round. So what
else happens on the machine hits all alike, and a ratio is taken within a round. The service
refills its pool during its own slots as it would under a client that never pauses.

``p50_ms`` is the median of the rounds' medians. ``p95_ms`` and ``p99_ms`` are over all samples;
``runs`` says how many these are.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.place import Skipped
from benchmarks.programs import Program
from benchmarks.results import Latency
from benchmarks.stats import median, ms, paired_ratio, percentile
from benchmarks.subjects import Subject

REFERENCE = "bare"


@dataclass(frozen=True, slots=True)
class Slots:
    """How much to measure: rounds, seconds of a slot, and at least and at most how many runs."""

    rounds: int
    seconds: float
    least: int
    most: int


@dataclass(slots=True)
class _Cell:
    """One program with one subject: what was measured, by round."""

    program: Program
    subject: Subject
    numbers: Iterator[int]
    rounds: list[list[float]] = field(default_factory=list)

    def warm_up(self) -> None:
        """Run once, unmeasured: caches fill, and what cannot run here is found out."""
        self._run()

    def slot(self, slots: Slots) -> None:
        """One slot of one round."""
        samples: list[float] = []
        end = time.perf_counter() + slots.seconds
        while len(samples) < slots.least or (
            time.perf_counter() < end and len(samples) < slots.most
        ):
            samples.append(self._run())
        self.rounds.append(samples)

    def medians(self) -> list[float]:
        return [median(samples) for samples in self.rounds]

    def _run(self) -> float:
        run = self.subject.prepare(self.program, next(self.numbers))
        started = time.perf_counter()
        raw = run()
        taken = time.perf_counter() - started
        if self.subject.printed(raw) != self.program.prints:
            raise Skipped(f"it printed something else: {self.subject.printed(raw)[:200]!r}")
        return taken


def measure(
    programs: Sequence[Program],
    subjects: Callable[[Program], Sequence[Subject]],
    slots: Slots,
    say: Callable[[str], None],
) -> tuple[list[Latency], dict[str, str]]:
    """The latencies, and what was skipped with its reason.

    ``subjects`` says who is to run a program.
    """
    skipped: dict[str, str] = {}
    # One count for all: a source made for one subject is in no cache of another's making.
    numbers = itertools.count(1)
    table = [_warm(program, subjects(program), numbers, skipped) for program in programs]
    for number in range(slots.rounds):
        say(f"latency: round {number + 1} of {slots.rounds}")
        for cells in table:
            for place in range(len(cells)):
                cells[(place + number) % len(cells)].slot(slots)
    return [row for cells in table for row in _rows(cells)], skipped


def _warm(
    program: Program,
    subjects: Sequence[Subject],
    numbers: Iterator[int],
    skipped: dict[str, str],
) -> list[_Cell]:
    cells = []
    for subject in subjects:
        cell = _Cell(program, subject, numbers)
        try:
            cell.warm_up()
        except Skipped as reason:
            skipped[f"{program.name} with {subject.name}"] = str(reason)
        else:
            cells.append(cell)
    return cells


def _rows(cells: Sequence[_Cell]) -> list[Latency]:
    bare = next((cell.medians() for cell in cells if cell.subject.name == REFERENCE), None)
    return [_row(cell, bare) for cell in cells]


def _row(cell: _Cell, bare: Sequence[float] | None) -> Latency:
    samples = [sample for samples in cell.rounds for sample in samples]
    medians = cell.medians()
    return Latency(
        program=cell.program.name,
        subject=cell.subject.name,
        runs=len(samples),
        p50_ms=ms(median(medians)),
        p95_ms=ms(percentile(samples, 95)),
        p99_ms=ms(percentile(samples, 99)),
        rounds_ms=[ms(value) for value in medians],
        against_bare=round(paired_ratio(medians, bare), 4) if bare else None,
    )
