"""The nouns of the service, frozen. They carry no behaviour beyond arithmetic on themselves.

Units are in the names: ``_ms`` milliseconds, ``_mb`` mebibytes, ``_bytes`` bytes,
``_s`` seconds. Times are timezone-aware UTC datetimes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import StrEnum

MIB = 1024 * 1024


class RunStatus(StrEnum):
    """Where a run stands; the rules of change are ``lifecycle.TRANSITIONS``."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMEOUT = "timeout"
    OOM = "oom"
    KILLED = "killed"
    CANCELLED = "cancelled"
    ERROR = "error"


class Phase(StrEnum):
    """Which of a program's processes the outcome speaks of."""

    COMPILE = "compile"
    RUN = "run"


class LimitHit(StrEnum):
    """The limit that ended a run."""

    WALL = "timeout_ms"
    CPU = "cpu_ms"
    MEMORY = "memory_mb"
    OUTPUT = "max_output_bytes"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run may use. Field names are the wire's."""

    timeout_ms: int = 5_000
    cpu_ms: int = 5_000
    memory_mb: int = 256
    max_output_bytes: int = 1 * MIB
    max_artifact_bytes: int = 5 * MIB
    max_artifact_files: int = 10

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The limits' names, in wire order."""
        return tuple(f.name for f in fields(cls))


DEFAULT_LIMITS = Limits()
MAXIMUM_LIMITS = Limits(
    timeout_ms=10_000,
    cpu_ms=20_000,
    memory_mb=512,
    max_output_bytes=2 * MIB,
    max_artifact_bytes=20 * MIB,
    max_artifact_files=10,
)


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file to stage at ``/work/inputs/<path>``: an upload's id, or bytes given inline."""

    path: str
    file_id: str | None = None
    content: bytes | None = None


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One further source file beside the main one, at ``/work/<path>``."""

    path: str
    content: bytes


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A validated request to run a program; what the HTTP edge decodes a body into."""

    language: str
    code: str
    args: tuple[str, ...] = ()
    stdin: str = ""
    env: tuple[tuple[str, str], ...] = ()
    files: tuple[InputFile, ...] = ()
    sources: tuple[SourceFile, ...] = ()
    limits: Limits = DEFAULT_LIMITS
    metadata: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class StagedFile:
    """Bytes to be at ``path`` (relative to ``/work``) before the program starts."""

    path: str
    content: bytes
    executable: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One process of a plan: its phase and its argument vector (``argv[0]`` absolute)."""

    phase: Phase
    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a sandbox needs to execute a run, as data.

    ``flavour`` names the kind of prepared sandbox to take (``"python"``,
    ``"python-data"``, ``"go"`` …); ``warm`` says whether its started-ahead
    interpreter can serve this run, or the interpreter must be started anew (an
    environment variable that is read at interpreter start, say). With ``warm``
    the first step's ``argv`` tells what the warm interpreter stands for.
    ``builds`` is what the compile step makes (relative to ``/work``) and the outcome
    is to bring along, empty for nothing; ``built_flavour`` is the flavour for the plan
    without that step.
    """

    language: str
    flavour: str
    warm: bool
    steps: tuple[Step, ...]
    args: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    stdin: bytes
    files: tuple[StagedFile, ...]
    limits: Limits
    processes: int
    builds: str = ""
    built_flavour: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a run used, as the host observed it. ``None``: not applicable or not known."""

    wall_ms: int = 0
    cpu_ms: int = 0
    max_rss_mb: int = 0
    compile_ms: int | None = None
    queue_ms: int = 0
    prepare_ms: int = 0
    output_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Output:
    """One captured stream: the kept bytes (head, omission line, tail) and the true total."""

    data: bytes = b""
    total_bytes: int = 0
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """A regular file that the program left under ``/work/outputs``; ``name`` is relative."""

    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Skipped:
    """A thing under ``outputs/`` that was not returned, and why."""

    name: str
    reason: str
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended, whatever it did: a value, never an exception.

    ``status`` is one of succeeded, failed, timeout, oom, killed, cancelled.
    ``signal`` is a name such as ``"SIGSEGV"``; ``reason`` explains ``killed``.
    ``built`` is the file that the plan ``builds``, as it was before the program
    started; the program's author made it, so it is for his sandboxes only.
    """

    status: RunStatus
    exit_code: int | None = None
    signal: str | None = None
    phase: Phase = Phase.RUN
    limit_hit: LimitHit | None = None
    reason: str | None = None
    stdout: Output = Output()
    stderr: Output = Output()
    usage: Usage = Usage()
    artifacts: tuple[ArtifactFile, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    built: bytes | None = None


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file the service keeps: an upload, or an artifact of a run.

    ``sha256`` (hex) names the object that holds the bytes; several files may
    share one object. ``run_id`` is set for artifacts. ``expires_at`` ``None``:
    kept until deleted.
    """

    id: str
    tenant: str
    name: str
    size: int
    sha256: str
    content_type: str
    purpose: str
    created_at: datetime
    expires_at: datetime | None = None
    run_id: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """The record of a run; what ``GET /v1/runs/{id}`` tells."""

    id: str
    tenant: str
    language: str
    status: RunStatus
    code_sha256: str
    limits: Limits
    created_at: datetime
    metadata: tuple[tuple[str, str], ...] = ()
    attempts: int = 0
    exit_code: int | None = None
    signal: str | None = None
    phase: Phase = Phase.RUN
    limit_hit: LimitHit | None = None
    reason: str | None = None
    stdout: str = ""
    stderr: str = ""
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    usage: Usage = field(default_factory=Usage)
    artifacts: tuple[StoredFile, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    started_at: datetime | None = None
    finished_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls: a tenant (the key's label), its rate, and which of its keys (not secret)."""

    tenant: str
    rps: float
    burst: int
    key_id: str = ""


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise of SECURITY.md on this host: kept or not, how it was seen, what fixes it."""

    id: str
    title: str
    kept: bool
    evidence: str
    fix: str | None = None
    waived: bool = False


@dataclass(frozen=True, slots=True)
class LanguageStatus:
    """A language as this host has it; ``reason`` says why it is not available."""

    id: str
    name: str
    file_name: str
    available: bool
    version: str | None = None
    reason: str | None = None
    aliases: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
