"""One go: the service under test, the subjects beside it, the phases, and what they found."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import backends, docker, latency, memory, soak, stored, throughput
from benchmarks.backends import Pace
from benchmarks.clients import Connection, follow, request_bytes
from benchmarks.latency import Slots
from benchmarks.place import Place, Skipped
from benchmarks.programs import PROGRAMS, Program
from benchmarks.results import Floors, Results
from benchmarks.service import TOKEN, OverHttp, Server, languages, one_artifact
from benchmarks.stats import median, ms, timed
from benchmarks.subjects import Command, Runc, Subject, bwrap, run_command
from benchmarks.throughput import REFERENCE_CLIENTS, Span

HELLO = PROGRAMS[0]
SETTLE_S = 3.0
FLOOR_SAMPLES = 50


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything."""

    slots: Slots
    sustained: Span
    half: Span
    stored_runs: int
    stored_samples: int
    pace: Pace


FULL = Scale(
    slots=Slots(rounds=7, seconds=0.6, least=2, most=200),
    sustained=Span(rounds=3, seconds=3.0),
    half=Span(rounds=3, seconds=6.0),
    stored_runs=10_000,
    stored_samples=200,
    pace=Pace(rounds=15, pause_s=0.7),
)
QUICK = Scale(
    slots=Slots(rounds=1, seconds=0.0, least=1, most=1),
    sustained=Span(rounds=1, seconds=0.3),
    half=Span(rounds=1, seconds=0.5),
    stored_runs=500,
    stored_samples=10,
    pace=Pace(rounds=1, pause_s=0.0),
)


@dataclass(slots=True)
class Bench:
    """One go: the place, the service under test, and the results that gather."""

    place: Place
    server: Server
    scale: Scale
    results: Results
    subjects: list[Subject] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)

    def open(self, stack: ExitStack, *, with_docker: bool) -> None:
        """Set the subjects up; what this machine lacks is noted and left out."""
        self.subjects.append(stack.enter_context(OverHttp(self.server.address)))
        self.commands.append(Command("bare", self.place))
        self._try("bwrap", lambda: self.commands.append(bwrap(self.place)))
        self.subjects += self.commands
        self._try("runc", lambda: self.subjects.append(Runc(self.place)))
        if with_docker:
            start = docker.engine(self.place)
            self._try("docker", lambda: self.subjects.append(stack.enter_context(start)))
        else:
            self.results.skipped["docker"] = "only with --docker"

    def latency(self) -> None:
        here = languages(self.server.address)
        programs = [program for program in PROGRAMS if program.language in here]
        for program in PROGRAMS:
            if program.language not in here:
                self.results.skipped[program.name] = "the service does not have the language"
        rows, skipped = latency.measure(programs, self._who_runs, self.scale.slots, say)
        self.results.latency = rows
        self.results.skipped.update(skipped)

    def throughput(self) -> None:
        self.results.throughput = throughput.measure(
            self.server.address, self.commands, self.place, HELLO, self.scale.sustained, say
        )
        row = self.results.find_sustained("service", REFERENCE_CLIENTS)
        assert row is not None
        self.results.half_load = throughput.half_load(
            self.server.address, HELLO, row.runs_per_s, self.scale.half, say
        )

    def memory(self, when: str) -> None:
        """Look at the service, after a pause in which the pool settles."""
        time.sleep(SETTLE_S)
        self._try("memory", lambda: self._look(when))

    def stored(self) -> None:
        self.results.stored = stored.measure(
            self.place, HELLO,
            runs=self.scale.stored_runs, samples=self.scale.stored_samples, say=say,
        )  # fmt: skip

    def head_starts(self, backend: str) -> None:
        def run() -> None:
            rows = backends.measure(backend, self.place, self.scale.pace, say)
            self.results.head_starts += rows

        self._try(backend, run)

    def soak(self, runs: int) -> None:
        def run() -> None:
            self.results.soak = soak.measure(self.server, HELLO, runs, say)

        self._try("soak", run)

    def floors(self) -> None:
        """What measuring itself costs: a command that does nothing, an answer without a run."""
        health = request_bytes("GET", "/v1/health")
        place = self.place
        with Connection(self.server.address) as connection:
            commands = [
                timed(lambda: run_command(["true"], place.work, place.environment()))
                for _ in range(FLOOR_SAMPLES)
            ]
            answers = [timed(lambda: connection.call(health)) for _ in range(FLOOR_SAMPLES)]
        self.results.floors = Floors(ms(median(commands)), ms(median(answers)))

    def chart(self) -> bytes:
        """The picture, drawn by the service."""
        body = {
            "language": "python",
            "code": Path(__file__).with_name("chart.py").read_text(),
            "stdin": json.dumps(self.results.document()),
            "limits": {"timeout_ms": 10_000},
        }
        with Connection(self.server.address) as connection:
            run = json.loads(
                connection.call(request_bytes("POST", "/v1/runs", token=TOKEN, body=body))
            )
            _, path = follow(one_artifact(run)["url"])
            return connection.call(request_bytes("GET", path))

    def _who_runs(self, program: Program) -> Sequence[Subject]:
        return [s for s in self.subjects if program.hello or s.name != "docker"]

    def _look(self, when: str) -> None:
        self.results.service_memory.append(memory.of_service(self.server.pid, when))
        if not self.results.sandboxes:
            self.results.sandboxes = memory.of_sandboxes(self.server.pid)

    def _try(self, what: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Skipped as reason:
            self.results.skipped[what] = str(reason)
            say(f"{what} skipped: {reason}")


def say(text: str) -> None:
    """One line of progress."""
    print(f"bench: {text}", file=sys.stderr, flush=True)
