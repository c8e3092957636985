"""Gate 2: JSON → the body's shape, and pydantic's errors in our words."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from code_executor.errors import InvalidRequest
from code_executor.wire.place import place_of, suggestion

MAX_ARGS = 1_000
MAX_ENV_NAMES = 256
MAX_FILES = 200
MAX_METADATA = 16


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)


_Positive = Annotated[int, Field(ge=1)]


class LimitsBody(_Body):
    """Limits of one run; one that is absent takes its default."""

    timeout_ms: _Positive = Field(default=5_000, description="Wall time, compile included.")
    cpu_ms: _Positive = Field(default=5_000, description="CPU time of all processes together.")
    memory_mb: _Positive = Field(default=256, description="Memory of all processes and files.")
    max_output_bytes: _Positive = Field(default=1_048_576, description="Each of the two streams.")
    max_artifact_bytes: _Positive = Field(default=5_242_880, description="Each returned file.")
    max_artifact_files: _Positive = Field(default=10, description="How many files are returned.")


class FileBody(_Body):
    """A file at ``/work/inputs/<path>``: the ``id`` of an uploaded one, or ``content``."""

    path: str = Field(description="Relative, no `..`; at most 1024 bytes.")
    id: str = Field(default="", max_length=64, description="An uploaded file.")
    content: str = Field(default="", description="The bytes, in `encoding`.")
    encoding: Literal["utf-8", "base64"] = Field(default="utf-8", description="Of `content`.")


class SourceBody(_Body):
    """A further source file at ``/work/<path>``, beside the main one."""

    path: str = Field(description="Relative, no `..`, not under `inputs` or `outputs`.")
    content: str = Field(description="The text.")


class RunBody(_Body):
    """The body of ``POST /v1/runs``."""

    language: str = Field(max_length=64, description="One of `GET /v1/languages`.")
    code: str = Field(description="The program; at most 200 KiB as UTF-8.")
    args: list[str] = Field(
        default_factory=list, max_length=MAX_ARGS, description="Passed as they are."
    )
    stdin: str = Field(default="", description="What the program reads.")
    env: dict[str, str] = Field(
        default_factory=dict, max_length=MAX_ENV_NAMES, description="Environment variables."
    )
    files: list[FileBody] = Field(
        default_factory=list, max_length=MAX_FILES, description="Files under `/work/inputs`."
    )
    sources: list[SourceBody] = Field(
        default_factory=list, max_length=MAX_FILES, description="Further source files in `/work`."
    )
    limits: LimitsBody = Field(default_factory=LimitsBody, description="What the run may use.")
    background: bool = Field(default=False, description="Not supported by this version.")
    stream: bool = Field(default=False, description="Not supported by this version.")
    metadata: dict[str, str] = Field(
        default_factory=dict, max_length=MAX_METADATA, description="Returned as given."
    )


def read_shape(value: object) -> RunBody:
    """The body, if it has the right shape.

    Raises:
        InvalidRequest: names the first place that is wrong and what is allowed there.
    """
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    try:
        return RunBody.model_validate(value)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        # A misspelt field is also a missing one; the spelling is what helps.
        details.sort(key=lambda detail: detail["type"] != "extra_forbidden")
        raise _explain(details[0]) from None


def _explain(detail: ErrorDetails) -> InvalidRequest:
    """One error of pydantic's list, in our words."""
    place = place_of(detail["loc"])
    kind = detail["type"]
    if kind == "extra_forbidden":
        known = _known_beside(detail)
        near = suggestion(str(detail["loc"][-1]), known) or f" Known here: {', '.join(known)}."
        return InvalidRequest(f"{place} is not a known field.{near}", param=place)
    rule = _RULES.get(kind)
    context = detail.get("ctx", {})
    text = rule.format(**context) if rule else "is not acceptable"
    return InvalidRequest(f"{place} {text}.", param=place)


_RULES = {
    "missing": "is required",
    "string_type": "must be a string",
    "string_too_long": "is too long; the maximum is {max_length} characters",
    "int_type": "must be an integer",
    "greater_than_equal": "must be {ge} or more",
    "bool_type": "must be true or false",
    "list_type": "must be an array",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "too_long": "has too many entries; the maximum is {max_length}",
    "literal_error": "must be {expected}",
}


def _known_beside(detail: ErrorDetails) -> list[str]:
    """The names of the fields that may stand where the error is."""
    shapes: dict[int | str, type[BaseModel]] = {
        "limits": LimitsBody,
        "files": FileBody,
        "sources": SourceBody,
    }
    loc = detail["loc"]
    return list(shapes[loc[0]].model_fields if len(loc) > 1 else RunBody.model_fields)
