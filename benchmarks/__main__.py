"""``python -m benchmarks``: measure, judge, write."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from subprocess import SubprocessError

from benchmarks.backends import BACKENDS
from benchmarks.bench import FULL, QUICK, Bench, Scale, say
from benchmarks.clients import BadAnswer
from benchmarks.machine import describe
from benchmarks.place import ROOT, Skipped, temporary_place
from benchmarks.report import markdown
from benchmarks.results import Results
from benchmarks.service import serving
from benchmarks.targets import judge

PHASES = ("latency", "throughput", "memory", "stored")
NONE = "none"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 when everything asked for was measured or skipped with a reason."""
    options = _parser().parse_args(arguments)
    whole = not options.quick and set(options.only) == set(PHASES)
    output: Path = options.output or ROOT / ("benchmarks" if whole else ".cache/bench")
    try:
        results, chart = _measure(options, full=whole)
    except (BadAnswer, Skipped, SubprocessError, RuntimeError, OSError) as failure:
        say(f"ended without results: {failure}")
        return 1
    _write(output, results, chart)
    print(markdown(results, chart=chart is not None))
    say(f"written to {output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke test: under a minute")
    parser.add_argument(
        "--only",
        type=_phases,
        default=PHASES,
        metavar="PHASE,…",
        help=f"of {', '.join(PHASES)}; or {NONE}",
    )
    parser.add_argument(
        "--backends",
        type=_backends,
        default=(),
        metavar="BACKEND,…",
        help=f"also what a sandbox prepared ahead saves, with each of {', '.join(BACKENDS)}",
    )
    parser.add_argument("--docker", action="store_true", help="also docker run")
    parser.add_argument("--soak", type=int, default=0, metavar="RUNS", help="also so many runs")
    parser.add_argument("--output", type=Path, help="directory of the results")
    return parser


def _phases(text: str) -> Sequence[str]:
    return () if text == NONE else _chosen(text, PHASES)


def _backends(text: str) -> Sequence[str]:
    return _chosen(text, BACKENDS)


def _chosen(text: str, known: Sequence[str]) -> Sequence[str]:
    chosen = text.split(",")
    if not set(chosen) <= set(known):
        raise argparse.ArgumentTypeError(f"not one of {', '.join(known)}: {text}")
    return chosen


def _measure(options: argparse.Namespace, *, full: bool) -> tuple[Results, bytes | None]:
    started = time.monotonic()
    scale: Scale = QUICK if options.quick else FULL
    with temporary_place() as place, ExitStack() as stack:
        results = Results(describe(place), full)
        say("starting the service")
        server = stack.enter_context(serving(place, place.scratch / "service"))
        bench = Bench(place, server, scale, results)
        bench.open(stack, with_docker=options.docker)
        _phase_by_phase(bench, options.only, options.soak)
        for backend in options.backends:
            bench.head_starts(backend)
        results.targets = judge(results)
        chart = bench.chart() if results.throughput else None
        results.seconds = round(time.monotonic() - started, 1)
    return results, chart


def _phase_by_phase(bench: Bench, phases: Sequence[str], soak_runs: int) -> None:
    bench.floors()
    if "memory" in phases:
        bench.memory("after the start")
    if "latency" in phases:
        bench.latency()
    if "throughput" in phases:
        bench.throughput()
    if "memory" in phases:
        bench.memory("after all other measurements")
    if "stored" in phases:
        bench.stored()
    if soak_runs:
        bench.soak(soak_runs)


def _write(output: Path, results: Results, chart: bytes | None) -> None:
    output.mkdir(parents=True, exist_ok=True)
    document = json.dumps(results.document(), indent=1, ensure_ascii=False)
    (output / "results.json").write_text(document + "\n")
    (output / "RESULTS.md").write_text(markdown(results, chart=chart is not None))
    if chart is not None:
        (output / "throughput.svg").write_bytes(chart)


if __name__ == "__main__":
    # Like an interrupt: what was started is ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
