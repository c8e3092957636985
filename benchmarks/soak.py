"""Whether the service stays as it was over many runs: latency, memory, disk, in ten steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import memory
from benchmarks.clients import Load, closed_loop
from benchmarks.programs import Program
from benchmarks.results import SoakStep
from benchmarks.service import Server, run_request
from benchmarks.stats import ms, percentile

STEPS = 10
CLIENTS = 8
_SLICE_S = 5.0
_PROBE_S = 3.0


def measure(
    server: Server, program: Program, runs: int, say: Callable[[str], None]
) -> list[SoakStep]:
    """After none, and after each tenth of ``runs`` runs of ``program``.

    Raises:
        Skipped: the memory of the service cannot be read.
    """
    done, steps = 0, []
    for step in range(STEPS + 1):
        while done < runs * step // STEPS:
            done += len(_load(server, program, CLIENTS, _SLICE_S).latencies)
        probe = _load(server, program, 1, _PROBE_S)
        done += len(probe.latencies)
        time.sleep(1)  # what was given out is destroyed and replaced
        steps.append(_look(server, done, probe))
        say(f"soak: {done} of {runs} runs")
    return steps


def _load(server: Server, program: Program, clients: int, seconds: float) -> Load:
    return closed_loop(server.address, run_request(program), clients, seconds)


def _look(server: Server, done: int, probe: Load) -> SoakStep:
    return SoakStep(
        runs=done,
        p50_ms=ms(percentile(probe.latencies, 50)),
        p99_ms=ms(percentile(probe.latencies, 99)),
        pss_mb=memory.of_service(server.pid, "").pss_mb,
        disk_mb=round(_disk_bytes(server.data) / 2**20, 2),
    )


def _disk_bytes(data: Path) -> int:
    """What the records and the objects take; the sandboxes' roots are mounts, not disk."""
    files = [*data.glob("records.db*"), *(data / "objects").rglob("*")]
    return sum(path.stat().st_blocks * 512 for path in files if path.is_file())
