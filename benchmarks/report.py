"""The results as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from benchmarks.programs import PROGRAMS
from benchmarks.results import Latency, Machine, Results, Verdict

_SUBJECTS = ("service", "bare", "bwrap", "runc", "docker")
_TITLES = {program.name: program.title for program in PROGRAMS}
_REACHED = {True: "reached", False: "**not reached**", None: "not measured"}


def markdown(results: Results, *, chart: bool) -> str:
    """The whole of ``RESULTS.md``; ``chart``: the picture lies beside it."""
    sections = (
        _head(results),
        _targets(results.targets),
        _latency(results),
        _throughput(results, chart=chart),
        _half_load(results),
        _memory(results),
        _stored(results),
        _soak(results),
        _head_starts(results),
        _skipped(results.skipped),
    )
    return "\n".join(line for section in sections for line in section)


def _head(results: Results) -> Iterator[str]:
    yield "# Results"
    yield ""
    yield "Made by `make bench`, in one go on one machine; the numbers are in"
    yield "[results.json](results.json), what they mean is in [README.md](README.md). Ratios carry"
    yield "over to other machines, milliseconds do not."
    yield ""
    if not results.full:
        yield "**A quick or partial go: too few samples for a statement.**"
        yield ""
    yield from _machine(results.machine)
    yield f"- {results.seconds:.0f} s in all"
    if results.floors is not None:
        yield (
            f"- measuring itself costs {results.floors.command_ms:.2f} ms for a command (`true`), "
            f"{results.floors.http_ms:.2f} ms for an HTTP request (`/v1/health`); both are included"
        )
    yield ""


def _machine(machine: Machine) -> Iterator[str]:
    kind = "virtual, " if machine.virtualised else ""
    yield f"- {machine.cpu}, {machine.cores} cores, {kind}{machine.memory_mb / 1024:.0f} GiB"
    yield f"- {machine.system}, Linux {machine.kernel}; load {machine.load_at_start:.2f} at start"
    yield "- " + ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    yield f"- {machine.measured_at}"


def _targets(verdicts: Sequence[Verdict]) -> Iterator[str]:
    yield from _title("Targets")
    rows = [
        (v.what, v.target, "" if v.measured is None else f"{v.measured:.3g} {v.unit}",
         _REACHED[v.reached])
        for v in verdicts
    ]  # fmt: skip
    yield from _table(("what", "target", "measured", ""), rows)


def _latency(results: Results) -> Iterator[str]:
    if not results.latency:
        return
    yield from _title("One client, one run after the other")
    present = {row.subject for row in results.latency}
    subjects = [name for name in _SUBJECTS if name in present]
    yield "p50 in ms, and in brackets the ratio to the bare interpreter:"
    yield ""
    rows = []
    for name, title in _TITLES.items():
        cells = [results.find_latency(name, subject) for subject in subjects]
        if any(cells):
            rows.append((title, *(_p50(cell) for cell in cells)))
    yield from _table(("", *subjects), rows)
    yield "All of it, in ms:"
    yield ""
    header = ("program", "subject", "runs", "p50", "p95", "p99", "p50 of the rounds")
    yield from _table(header, [_detail(row) for row in results.latency])


def _p50(row: Latency | None) -> str:
    if row is None:
        return "–"
    ratio = "" if row.against_bare is None else f" ({row.against_bare:.2f} ×)"
    return f"{row.p50_ms:.1f}{ratio}"


def _detail(row: Latency) -> Sequence[str]:
    spread = f"{min(row.rounds_ms):.1f} – {max(row.rounds_ms):.1f}"
    times = (f"{value:.1f}" for value in (row.p50_ms, row.p95_ms, row.p99_ms))
    return (_TITLES[row.program], row.subject, str(row.runs), *times, spread)


def _throughput(results: Results, *, chart: bool) -> Iterator[str]:
    if not results.throughput:
        return
    yield from _title("Many clients, Python `print(1+1)`")
    if chart:
        yield "![Latency by subject, and runs per second by clients](throughput.svg)"
        yield ""
    yield "`bare` and `bwrap`: so many processes at a time, started by `xargs -P`."
    yield ""
    header = ("subject", "clients", "runs/s", "rounds", "p50 ms", "p99 ms", "load generator")
    rows = [
        (row.subject, str(row.clients), f"{row.runs_per_s:.1f}",
         f"{min(row.rounds_per_s):.0f} – {max(row.rounds_per_s):.0f}",
         _number(row.p50_ms), _number(row.p99_ms), _share(row.generator_share))
        for row in results.throughput
    ]  # fmt: skip
    yield from _table(header, rows)


def _half_load(results: Results) -> Iterator[str]:
    if not results.half_load:
        return
    yield from _title("At half of the sustained rate")
    yield "Requests that come whether or not earlier ones are answered; a request's time counts"
    yield "from the moment at which it was due."
    yield ""
    header = ("arrivals", "per second", "runs", "p50 ms", "p99 ms", "p99 / p50", "load generator")
    rows = [
        (row.arrivals, f"{row.offered_per_s:.1f}", str(row.runs), f"{row.p50_ms:.1f}",
         f"{row.p99_ms:.1f}", f"{row.p99_over_p50:.1f} ×", _share(row.generator_share))
        for row in results.half_load
    ]  # fmt: skip
    yield from _table(header, rows)


def _memory(results: Results) -> Iterator[str]:
    if not results.service_memory:
        return
    yield from _title("Memory")
    yield "A prepared sandbox that waits, all its processes together, in MB: what only it has;"
    yield "that and its share of common pages (PSS); what its control group was charged."
    yield ""
    sandboxes = [
        (row.flavour, str(row.count), f"{row.private_mb:.2f}", f"{row.pss_mb:.2f}",
         _number(row.charged_mb, 2))
        for row in results.sandboxes
    ]  # fmt: skip
    yield from _table(("sandbox", "waiting", "private", "PSS", "charged"), sandboxes)
    rows = [(row.when, str(row.processes), f"{row.pss_mb:.0f}") for row in results.service_memory]
    yield from _table(("the whole service", "processes", "PSS, MB"), rows)


def _stored(results: Results) -> Iterator[str]:
    if not results.stored:
        return
    runs = results.stored[0].runs
    yield from _title(f"With {runs:,} stored runs")
    yield "Two services asked in turn; medians in ms."
    yield ""
    rows = [
        (row.request, f"{row.new_ms:.2f}", f"{row.full_ms:.2f}", f"{row.ratio:.2f} ×")
        for row in results.stored
    ]
    yield from _table(("request", "new service", f"{runs:,} runs", "ratio"), rows)


def _soak(results: Results) -> Iterator[str]:
    if not results.soak:
        return
    yield from _title(f"Over {results.soak[-1].runs:,} runs")
    yield "One client's latency and the service's size in between, at eight clients the rest of"
    yield "the time. Disk holds every run until it expires."
    yield ""
    rows = [
        (f"{row.runs:,}", f"{row.p50_ms:.1f}", f"{row.p99_ms:.1f}", f"{row.pss_mb:.0f}",
         f"{row.disk_mb:.1f}")
        for row in results.soak
    ]  # fmt: skip
    yield from _table(("after runs", "p50 ms", "p99 ms", "memory MB", "disk MB"), rows)


def _head_starts(results: Results) -> Iterator[str]:
    if not results.head_starts:
        return
    yield from _title("What a sandbox prepared ahead saves")
    yield "Two services asked in turn, with a pause before each request in which the pool fills;"
    yield "medians in ms. Cold: the sandbox is made, and the interpreter started, for the request."
    yield ""
    rows = [
        (row.backend, _TITLES[row.program], str(row.runs), f"{row.warm_ms:.1f}",
         f"{row.cold_ms:.1f}", f"{row.ratio:.1f} ×")
        for row in results.head_starts
    ]  # fmt: skip
    yield from _table(("backend", "program", "runs", "warm", "cold", "cold / warm"), rows)


def _skipped(skipped: Mapping[str, str]) -> Iterator[str]:
    if not skipped:
        return
    yield from _title("Not measured")
    yield from (f"- {what}: {reason}" for what, reason in skipped.items())
    yield ""


def _title(text: str) -> Iterator[str]:
    yield f"## {text}"
    yield ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    yield from ("| " + " | ".join(row) + " |" for row in rows)
    yield ""


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%} of a core"
