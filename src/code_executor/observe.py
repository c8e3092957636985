"""Logs and metrics: one honest JSON line per event, one registry of numbers.

Logs. ``configure_logging`` sends structlog and the standard library's loggers through the same
processors to one stream. A line is one JSON object in ASCII: control characters and line breaks
arrive escaped, so nothing that a client sends can forge a line. Strings are cut to
``MAX_VALUE_CHARS``; fields that could hold a secret or a user's data are dropped by name. Ids of
the request and the run ride along in context variables (``structlog.contextvars``), which
follow an asyncio task and its children.

Metrics. ``Metrics`` owns its registry (none of the process-wide default), so that tests and
several services in one process do not share numbers. Labels come from closed sets only: route
templates, statuses, languages.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from functools import cache
from types import NoneType
from typing import Protocol, TextIO, cast

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from pydantic_core import PydanticSerializationError, to_json
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

MAX_VALUE_CHARS = 2_000
MAX_TRACEBACK_CHARS = 20_000
SECRET_FIELDS = frozenset(
    {
        *("api_key", "authorization", "cookie", "password", "payload", "secret", "sig"),
        *("signature", "signing_key", "token", "query", "query_string"),
        *("args", "body", "code", "content", "env", "stderr", "stdin", "stdout"),
    }
)
METRICS_CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BYTES = (0, 1e3, 1e4, 1e5, 1e6, 1e7)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128)


def get_logger(name: str) -> FilteringBoundLogger:
    """A logger that adds ``component=name`` to its lines."""
    return cast(FilteringBoundLogger, _Component(name))


class _Component:
    """structlog's logger, bound once for a configuration: for each line it takes half the time."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._configured: list[Processor] | None = None  # a list of its own each time
        self._bound: object = None

    def __getattr__(self, method: str) -> object:
        configured: list[Processor] = structlog.get_config()["processors"]
        if self._configured is not configured:
            self._bound = structlog.get_logger(component=self._name).bind()
            self._configured = configured
        return getattr(self._bound, method)


def configure_logging(level: str = "INFO", stream: TextIO | None = None) -> None:
    """Send every log line of the process to ``stream`` (standard error) as JSON.

    ``level`` is a name of the standard library (``DEBUG`` … ``CRITICAL``), in any case.
    """
    out = stream or sys.stderr
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*_shared_processors(), render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    _route_standard_library(number, out)
    # It tells of each plugin and each look at the schema, at every start.
    logging.getLogger("alembic").setLevel(max(number, logging.WARNING))


def _shared_processors() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.format_exc_info,
        drop_secrets,
        cap_values,
    ]


def _route_standard_library(level: int, out: TextIO) -> None:
    """Libraries log through the same processors; uvicorn's own access lines are switched off."""
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_name_component],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_shared_processors(),
                render,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.INFO))
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = name != "uvicorn.access"


def _name_component(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event["component"] = event["_record"].name
    return event


def drop_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace the value of every field named in ``SECRET_FIELDS``; a net below careful callers."""
    for name in SECRET_FIELDS.intersection(event):
        event[name] = "[dropped]"
    return event


def cap_values(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Cut long strings, and turn what is not a plain value into a cut ``repr``."""
    for name, value in event.items():
        if isinstance(value, str):
            if len(value) > MAX_VALUE_CHARS:
                event[name] = _cut(value, _cap(name))
        elif not isinstance(value, _PLAIN):
            event[name] = _cut_repr(value)
    return event


_PLAIN = (int, float, NoneType)


def _cap(name: str) -> int:
    return MAX_TRACEBACK_CHARS if name == "exception" else MAX_VALUE_CHARS


def _cut_repr(value: object) -> str:
    return _cut(repr(value), MAX_VALUE_CHARS)


def _cut(text: str, cap: int) -> str:
    return text if len(text) <= cap else f"{text[:cap]}… ({len(text)} characters)"


_JSON = json.JSONEncoder(ensure_ascii=True, default=_cut_repr)


def render(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    """The line."""
    try:
        line = to_json(event, ensure_ascii=True, fallback=_cut_repr).decode()
    except PydanticSerializationError:  # a lone surrogate
        return _JSON.encode(event)
    return line.replace("\x7f", "\\u007f")


class _Usage(Protocol):
    @property
    def wall_ms(self) -> int: ...
    @property
    def cpu_ms(self) -> int: ...
    @property
    def queue_ms(self) -> int: ...
    @property
    def prepare_ms(self) -> int: ...
    @property
    def output_bytes(self) -> int: ...


class _Sized(Protocol):
    @property
    def size(self) -> int: ...


class FinishedRun(Protocol):
    """What of a run is counted; ``model.Run`` is one (this floor imports no nouns)."""

    @property
    def language(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def usage(self) -> _Usage: ...
    @property
    def artifacts(self) -> tuple[_Sized, ...]: ...


class Metrics:
    """Every number the service reports; ``text`` is the answer of ``GET /metrics``."""

    def __init__(self) -> None:
        # A second series for each, which nobody asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library leaves it untyped
        self.registry = CollectorRegistry()
        self._runs = cache(lambda *labels: self.runs.labels(*labels))
        self._run_seconds = cache(lambda *labels: self.run_seconds.labels(*labels))
        self._pool = cache(lambda flavour: self.pool.labels(flavour))
        self._requests = cache(lambda *labels: self.requests.labels(*labels))
        self._request_seconds = cache(lambda route: self.request_seconds.labels(route))
        self._define_runs()
        self._define_http()

    def _define_runs(self) -> None:
        r = self.registry
        self.runs = Counter(
            "code_executor_runs", "Finished runs.", ["language", "status"], registry=r
        )
        self.run_seconds = Histogram(
            "code_executor_run_seconds",
            "Time of finished runs by part: wall, cpu, queue, prepare.",
            ["language", "part"],
            buckets=_SECONDS,
            registry=r,
        )
        self.output_bytes = Histogram(
            "code_executor_output_bytes", "Bytes printed by a run.", buckets=_BYTES, registry=r
        )
        self.artifact_bytes = Histogram(
            "code_executor_artifact_bytes", "Bytes of a run's files.", buckets=_BYTES, registry=r
        )
        self.runs_in_flight = Gauge(
            "code_executor_runs_in_flight", "Runs admitted and not finished.", registry=r
        )
        self.pool = Gauge(
            "code_executor_pool_sandboxes", "Prepared sandboxes ready.", ["flavour"], registry=r
        )
        self.records_batch = Histogram(
            "code_executor_records_batch_size", "Writes per commit.", buckets=_BATCH, registry=r
        )

    def _define_http(self) -> None:
        r = self.registry
        self.requests = Counter(
            "code_executor_http_requests",
            "Answered HTTP requests.",
            ["method", "route", "status"],
            registry=r,
        )
        self.request_seconds = Histogram(
            "code_executor_http_request_seconds",
            "Time from the request's headers to the end of the answer.",
            ["route"],
            buckets=_SECONDS,
            registry=r,
        )
        self.requests_in_flight = Gauge(
            "code_executor_http_requests_in_flight", "Requests being answered.", registry=r
        )
        self.rate_limited = Counter(
            "code_executor_rate_limited", "Requests refused by a token bucket.", registry=r
        )

    def run_finished(self, run: FinishedRun) -> None:
        """Count a run that has ended."""
        self._runs(run.language, str(run.status)).inc()
        for part in ("wall", "cpu", "queue", "prepare"):
            milliseconds = getattr(run.usage, f"{part}_ms")
            self._run_seconds(run.language, part).observe(milliseconds / 1000)
        self.output_bytes.observe(run.usage.output_bytes)
        self.artifact_bytes.observe(sum(file.size for file in run.artifacts))

    def pool_level(self, levels: Mapping[str, int]) -> None:
        """Report how many prepared sandboxes of each flavour wait."""
        for flavour, count in levels.items():
            self._pool(flavour).set(count)

    def request_finished(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answered request; ``route`` is the template, never the path."""
        self._requests(method, route, str(status)).inc()
        self._request_seconds(route).observe(seconds)

    def text(self) -> bytes:
        """The numbers in Prometheus' text format."""
        return generate_latest(self.registry)
