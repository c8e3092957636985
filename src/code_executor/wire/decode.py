"""Gate 3: the body's shape → a request, by the rules of this service."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from code_executor.errors import InvalidRequest, LimitTooHigh, PayloadTooLarge
from code_executor.model import (
    DEFAULT_LIMITS,
    MAXIMUM_LIMITS,
    InputFile,
    Limits,
    RunRequest,
    SourceFile,
)
from code_executor.wire.parse import parse_json
from code_executor.wire.paths import CONTROL, check_clashes, check_path
from code_executor.wire.place import shown, suggestion
from code_executor.wire.shape import FileBody, LimitsBody, RunBody, SourceBody, read_shape

MAX_ARG_BYTES = 131_071  # Linux: MAX_ARG_STRLEN, its final NUL taken off
MAX_ARGS_BYTES = 512 * 1024
MAX_ENV_NAME_BYTES = 255
MAX_ENV_BYTES = 512 * 1024
MAX_STDIN_BYTES = 10 * 1024 * 1024
MAX_METADATA_KEY_CHARS = 64
MAX_METADATA_VALUE_CHARS = 512
RESERVED_DIRECTORIES = ("inputs", "outputs")

_LARGEST_SHOWN = 10**15


@dataclass(frozen=True, slots=True)
class RunRules:
    """What this service accepts.

    ``languages`` maps a language's id to the name of its main source; ``aliases`` maps
    other names of a language to its id.
    """

    languages: Mapping[str, str]
    aliases: Mapping[str, str] = field(default_factory=dict)
    defaults: Limits = DEFAULT_LIMITS
    maxima: Limits = MAXIMUM_LIMITS
    max_code_bytes: int = 200 * 1024
    max_file_bytes: int = 10 * 1024 * 1024
    max_files_bytes: int = 25 * 1024 * 1024


def decode_run(body: bytes, rules: RunRules) -> RunRequest:
    """Read the body of ``POST /v1/runs``.

    Raises:
        InvalidRequest: malformed, with ``param`` set when one field is to blame.
        LimitTooHigh: a limit above ``rules.maxima``.
        PayloadTooLarge: a file, or all together, above the cap.
    """
    shape = read_shape(parse_json(body))
    _refuse_unsupported(shape)
    language = rules.aliases.get(shape.language, shape.language)
    if language not in rules.languages:
        raise unknown_language(shape.language, rules.languages)
    _bounded(shape.code, "code", rules.max_code_bytes)
    _bounded(shape.stdin, "stdin", MAX_STDIN_BYTES)
    files = [_file(entry, at, rules) for at, entry in enumerate(shape.files)]
    sources = [_source(entry, at, rules) for at, entry in enumerate(shape.sources)]
    _check_layout(files, sources, rules.languages[language])
    _check_total(files, sources, rules.max_files_bytes)
    return RunRequest(
        language=language,
        code=shape.code,
        args=_args(shape.args),
        stdin=shape.stdin,
        env=_env(shape.env),
        files=tuple(files),
        sources=tuple(sources),
        limits=_limits(shape.limits, rules),
        metadata=_metadata(shape.metadata),
    )


def _refuse_unsupported(shape: RunBody) -> None:
    """The one place that knows which parts of the contract this version does not serve."""
    for name in ("background", "stream"):
        if getattr(shape, name):
            raise InvalidRequest(
                f"{name} is not supported by this version of the service.",
                param=name,
                code="not_supported",
            )


def unknown_language(name: str, known: Iterable[str]) -> InvalidRequest:
    """The refusal of a language: lists what there is and suggests the nearest name."""
    names = sorted(known)
    return InvalidRequest(
        f"language {shown(name)!r} is not known; this service runs {', '.join(names)}."
        f"{suggestion(name.lower(), names)}",
        param="language",
        code="unknown_language",
    )


def _limits(shape: LimitsBody, rules: RunRules) -> Limits:
    given: dict[str, int] = {name: getattr(shape, name) for name in shape.model_fields_set}
    if not given:
        return rules.defaults
    for name in Limits.names():
        maximum = getattr(rules.maxima, name)
        if given.get(name, 0) > maximum:
            value = given[name] if given[name] < _LARGEST_SHOWN else "too large"
            raise LimitTooHigh(
                f"limits.{name} is {value}; the maximum is {maximum}.", param=f"limits.{name}"
            )
    return replace(rules.defaults, **given)


def _args(args: list[str]) -> tuple[str, ...]:
    for at, arg in enumerate(args):
        _without_nul(arg, f"args[{at}]")
        _bounded(arg, f"args[{at}]", MAX_ARG_BYTES)
    if sum(len(arg.encode()) + 1 for arg in args) > MAX_ARGS_BYTES:
        raise InvalidRequest(f"args is over {MAX_ARGS_BYTES} bytes in all.", param="args")
    return tuple(args)


def _env(env: dict[str, str]) -> tuple[tuple[str, str], ...]:
    for name, value in env.items():
        place = f"env.{shown(name)}"
        if not name or "=" in name or CONTROL.search(name):
            raise InvalidRequest(
                f"{place}: a name must not be empty and must not hold '=' or control characters.",
                param=place,
            )
        _bounded(name, place, MAX_ENV_NAME_BYTES)
        _without_nul(value, place)
        _bounded(value, place, MAX_ARG_BYTES - len(name.encode()) - 1)
    if sum(len(name.encode()) + len(value.encode()) for name, value in env.items()) > MAX_ENV_BYTES:
        raise InvalidRequest(f"env is over {MAX_ENV_BYTES} bytes in all.", param="env")
    return tuple(env.items())


def _metadata(metadata: dict[str, str]) -> tuple[tuple[str, str], ...]:
    for name, value in metadata.items():
        place = f"metadata.{shown(name)}"
        if not 1 <= len(name) <= MAX_METADATA_KEY_CHARS:
            raise InvalidRequest(
                f"{place}: a key has 1 to {MAX_METADATA_KEY_CHARS} characters.", param=place
            )
        if len(value) > MAX_METADATA_VALUE_CHARS:
            raise InvalidRequest(
                f"{place} is too long; the maximum is {MAX_METADATA_VALUE_CHARS} characters.",
                param=place,
            )
    return tuple(metadata.items())


def _file(entry: FileBody, at: int, rules: RunRules) -> InputFile:
    place = f"files[{at}]"
    check_path(entry.path, f"{place}.path")
    given = entry.model_fields_set
    if ("id" in given) == ("content" in given):
        raise InvalidRequest(f"{place} must have either id or content.", param=place)
    if "id" in given:
        if "encoding" in given or not entry.id:
            raise InvalidRequest(f"{place}: id stands alone and is not empty.", param=place)
        return InputFile(entry.path, file_id=entry.id)
    content = _content(entry, f"{place}.content")
    _check_size(content, f"{place}.content", rules.max_file_bytes)
    return InputFile(entry.path, content=content)


def _content(entry: FileBody, place: str) -> bytes:
    if entry.encoding == "utf-8":
        return entry.content.encode()
    try:
        return base64.b64decode(entry.content.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise InvalidRequest(f"{place} is not valid base64.", param=place) from None


def _source(entry: SourceBody, at: int, rules: RunRules) -> SourceFile:
    place = f"sources[{at}].path"
    check_path(entry.path, place)
    if entry.path.split("/")[0] in RESERVED_DIRECTORIES:
        raise InvalidRequest(f"{place} is in a directory that is not for sources.", param=place)
    content = entry.content.encode()
    _check_size(content, f"sources[{at}].content", rules.max_file_bytes)
    return SourceFile(entry.path, content)


def _check_layout(files: list[InputFile], sources: list[SourceFile], main: str) -> None:
    """No path twice, none inside another; a source does not replace the main one."""
    check_clashes([file.path for file in files], lambda at: f"files[{at}].path")
    check_clashes(
        [main, *(source.path for source in sources)], lambda at: f"sources[{at - 1}].path"
    )


def _check_total(files: list[InputFile], sources: list[SourceFile], maximum: int) -> None:
    total = sum(len(file.content or b"") for file in files)
    total += sum(len(source.content) for source in sources)
    if total > maximum:
        raise PayloadTooLarge(
            f"files and sources are {total} bytes in all; the maximum is {maximum}.", param="files"
        )


def _check_size(content: bytes, place: str, maximum: int) -> None:
    if len(content) > maximum:
        raise PayloadTooLarge(
            f"{place} is {len(content)} bytes; the maximum is {maximum}.", param=place
        )


def _bounded(text: str, place: str, maximum: int) -> None:
    size = len(text.encode())
    if size > maximum:
        raise InvalidRequest(
            f"{place} is too long: {size} bytes; the maximum is {maximum}.", param=place
        )


def _without_nul(text: str, place: str) -> None:
    if "\0" in text:
        raise InvalidRequest(f"{place} must not hold a NUL character.", param=place)
