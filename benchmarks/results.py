"""What a benchmark found: the shape of ``results.json``.

Units are in the names: ``_ms`` milliseconds, ``_s`` seconds, ``_mb`` MiB, ``_per_s`` per second.
A phase that was not measured is ``None`` or empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Machine:
    """What the numbers were taken on; nothing that tells which machine it was."""

    cpu: str
    cores: int
    memory_mb: int
    kernel: str
    system: str
    virtualised: bool
    load_at_start: float
    versions: Mapping[str, str]
    measured_at: str


@dataclass(frozen=True, slots=True)
class Floors:
    """What measuring itself costs: starting ``true`` as a command; an HTTP answer without a run."""

    command_ms: float
    http_ms: float


@dataclass(frozen=True, slots=True)
class Latency:
    """One program with one subject, one run after the other."""

    program: str
    subject: str
    runs: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    rounds_ms: Sequence[float]
    """The median of each round."""
    against_bare: float | None
    """The median of the rounds' ratios to the bare interpreter."""


@dataclass(frozen=True, slots=True)
class Sustained:
    """Python `print(1+1)` without pause. For commands ``clients`` is how many ran at once."""

    subject: str
    clients: int
    runs_per_s: float
    rounds_per_s: Sequence[float]
    p50_ms: float | None = None
    p99_ms: float | None = None
    generator_share: float | None = None
    """What the load generator took of one core."""


@dataclass(frozen=True, slots=True)
class HalfLoad:
    """Python `print(1+1)` arriving at half of the sustained rate, whatever is answered."""

    arrivals: str
    offered_per_s: float
    runs: int
    p50_ms: float
    p99_ms: float
    p99_over_p50: float
    """The median over rounds."""
    generator_share: float


@dataclass(frozen=True, slots=True)
class WarmSandbox:
    """The memory of one prepared sandbox that waits, all its processes together (median)."""

    flavour: str
    count: int
    private_mb: float
    pss_mb: float
    charged_mb: float | None
    """What its control group has been charged, kernel memory included."""


@dataclass(frozen=True, slots=True)
class ServiceMemory:
    """All processes of the service, waiting sandboxes included."""

    when: str
    processes: int
    pss_mb: float


@dataclass(frozen=True, slots=True)
class StoredCost:
    """A request to a new service, and to one that has ``runs`` runs in its records."""

    request: str
    runs: int
    new_ms: float
    full_ms: float
    ratio: float


@dataclass(frozen=True, slots=True)
class HeadStart:
    """One program with one backend, with a sandbox that waits and with one made for the request."""

    backend: str
    program: str
    runs: int
    warm_ms: float
    cold_ms: float
    ratio: float
    """The median over rounds of cold to warm."""


@dataclass(frozen=True, slots=True)
class SoakStep:
    """The service after so many runs."""

    runs: int
    p50_ms: float
    p99_ms: float
    pss_mb: float
    disk_mb: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line of the target table; ``measured`` ``None``: not measured this time."""

    what: str
    target: str
    measured: float | None
    unit: str
    reached: bool | None


@dataclass(slots=True)
class Results:
    """Everything of one go."""

    machine: Machine
    full: bool
    seconds: float = 0.0
    floors: Floors | None = None
    latency: list[Latency] = field(default_factory=list)
    throughput: list[Sustained] = field(default_factory=list)
    half_load: list[HalfLoad] = field(default_factory=list)
    sandboxes: list[WarmSandbox] = field(default_factory=list)
    service_memory: list[ServiceMemory] = field(default_factory=list)
    stored: list[StoredCost] = field(default_factory=list)
    soak: list[SoakStep] = field(default_factory=list)
    head_starts: list[HeadStart] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    targets: list[Verdict] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    def find_latency(self, program: str, subject: str) -> Latency | None:
        """The row of that program and subject."""
        rows = (r for r in self.latency if (r.program, r.subject) == (program, subject))
        return next(rows, None)

    def find_sustained(self, subject: str, clients: int) -> Sustained | None:
        """The row of that subject and number of clients."""
        rows = (r for r in self.throughput if (r.subject, r.clients) == (subject, clients))
        return next(rows, None)

    def best_sustained(self, subject: str) -> Sustained | None:
        """The row of that subject with the highest rate."""
        rows = [row for row in self.throughput if row.subject == subject]
        return max(rows, key=lambda row: row.runs_per_s, default=None)
