"""The answers' shapes, for the OpenAPI document. Nothing is validated with them at run time;
a test holds every encoder of :mod:`code_executor.api.views` to its schema here."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from code_executor.model import LimitHit, Phase, RunStatus


class _Object(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LimitsObject(_Object):
    """The limits of a run."""

    timeout_ms: int
    cpu_ms: int
    memory_mb: int
    max_output_bytes: int
    max_artifact_bytes: int
    max_artifact_files: int


class UsageObject(_Object):
    """What a run used, as the host observed it."""

    wall_ms: int
    cpu_ms: int
    max_rss_mb: int
    compile_ms: int | None
    queue_ms: int
    prepare_ms: int
    output_bytes: int


class ArtifactObject(_Object):
    """A file that a run left under `/work/outputs`."""

    id: str
    name: str
    size: int
    sha256: str
    content_type: str
    url: str = Field(description="Signed; needs no API key.")
    expires_at: datetime = Field(description="When the link ends.")


class SkippedObject(_Object):
    """Something under `/work/outputs` that was not returned."""

    name: str
    reason: str
    size: int | None


class RunObject(_Object):
    """A run. HTTP 200 with a status for everything that the program does to itself."""

    id: str
    object: Literal["run"]
    status: RunStatus
    language: str
    exit_code: int | None
    signal: str | None
    phase: Phase
    limit_hit: LimitHit | None
    reason: str | None
    stdout: str
    stderr: str
    stdout_truncated: bool
    stderr_truncated: bool
    usage: UsageObject
    artifacts: list[ArtifactObject]
    artifacts_skipped: list[SkippedObject]
    limits: LimitsObject
    metadata: dict[str, str]
    code_sha256: str
    attempts: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class FileObject(_Object):
    """A file. `filename` and `bytes` repeat `name` and `size` for OpenAI's clients."""

    id: str
    object: Literal["file"]
    name: str
    filename: str
    size: int
    bytes: int
    sha256: str
    content_type: str
    purpose: str
    created_at: int = Field(description="Unix seconds.")


class _Page(_Object):
    object: Literal["list"]
    has_more: bool
    first_id: str | None
    last_id: str | None


class RunList(_Page):
    """Runs, newest first."""

    data: list[RunObject]


class FileList(_Page):
    """Files, newest first."""

    data: list[FileObject]


class DeletedObject(_Object):
    """What remains of a deleted run or file."""

    id: str
    object: Literal["run", "file"]
    deleted: Literal[True]


class LanguageLimits(_Object):
    """What a run has, and what it may ask for."""

    default: LimitsObject
    maximum: LimitsObject


class LanguageObject(_Object):
    """A language as this host has it."""

    id: str
    object: Literal["language"]
    name: str
    aliases: list[str]
    version: str | None
    file_name: str
    available: bool
    reason: str | None
    limits: LanguageLimits
    packages: list[str]


class LanguageList(_Object):
    """Every language the service knows."""

    object: Literal["list"]
    data: list[LanguageObject]


class HealthObject(_Object):
    """The process answers."""

    status: Literal["ok"]


class PromiseObject(_Object):
    """One promise of SECURITY.md on this host."""

    id: str
    title: str
    kept: bool
    waived: bool
    evidence: str
    fix: str | None


class ReadyObject(_Object):
    """A real program has run in the sandbox."""

    status: Literal["ready"]
    backend: str
    waived: list[str]
    promises: list[PromiseObject]


class ModelList(_Object):
    """Empty: there are no models here."""

    object: Literal["list"]
    data: list[str]


class ErrorDetail(_Object):
    """What went wrong."""

    type: str
    code: str
    message: str
    param: str | None = Field(description="The field to blame, when it is one.")
    request_id: str


class ErrorObject(_Object):
    """The one body of every error."""

    error: ErrorDetail


class UploadBody(_Object):
    """The body of `POST /v1/files`, as `multipart/form-data`."""

    file: str = Field(json_schema_extra={"format": "binary"})
    purpose: str = Field(default="user_data", max_length=64)
