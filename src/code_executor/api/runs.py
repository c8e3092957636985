"""The endpoints under ``/v1/runs``."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from code_executor.api.config import EdgeConfig
from code_executor.api.endpoint import Endpoint, query_parameter
from code_executor.api.errors import json_answer
from code_executor.api.links import Links
from code_executor.api.middleware import header_values, principal_of
from code_executor.api.query import MAX_PAGE, after_id, page_size, read_query
from code_executor.api.schemas import DeletedObject, RunList, RunObject
from code_executor.api.service_port import ServicePort
from code_executor.api.views import deleted_view, list_view, run_view
from code_executor.errors import InvalidRequest, SandboxUnavailable, UnsupportedMedia
from code_executor.model import RunStatus
from code_executor.wire import RunRules, decode_run

_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_LIST_PARAMETERS = frozenset({"limit", "after", "status", "language"})

RUN_EXAMPLES: dict[str, Any] = {
    "hello": {"summary": "Hello", "value": {"language": "python", "code": "print(1 + 1)"}},
    "file": {
        "summary": "A file in, a file out",
        "value": {
            "language": "python",
            "code": "text = open('inputs/a.txt').read()\nopen('outputs/b.txt', 'w').write(text)",
            "files": [{"path": "a.txt", "content": "hello", "encoding": "utf-8"}],
            "limits": {"timeout_ms": 2000},
        },
    },
}


class Runs:
    """Create, read, list, cancel and delete runs."""

    def __init__(self, service: ServicePort, config: EdgeConfig, links: Links) -> None:
        self._service = service
        self._config = config
        self._links = links
        self._rules: RunRules | None = None

    async def create(self, request: Request) -> Response:
        """Run code and answer when it has ended."""
        require_json(request)
        idempotency_key = _idempotency_key(request)
        body = await request.body()
        run_request = decode_run(body, self._rules or await self._read_rules())
        idempotency = (
            (idempotency_key, hashlib.sha256(body).hexdigest()) if idempotency_key else None
        )
        principal = principal_of(request.scope)
        run = await self._service.run(principal, run_request, idempotency=idempotency)
        if run.status is RunStatus.ERROR:
            raise SandboxUnavailable("The service could not run the program. Try again later.")
        return json_answer(run_view(run, self._links.make))

    async def read(self, request: Request, run_id: str) -> Response:
        """One run; its artifacts' links are signed afresh."""
        run = await self._service.get_run(principal_of(request.scope), run_id)
        return json_answer(run_view(run, self._links.make))

    async def browse(self, request: Request) -> Response:
        """Own runs, newest first."""
        query = read_query(request.query_params, _LIST_PARAMETERS)
        runs, has_more = await self._service.list_runs(
            principal_of(request.scope),
            limit=page_size(query),
            after=after_id(query),
            status=_status(query.get("status")),
            language=query.get("language"),
        )
        data = [run_view(run, self._links.make) for run in runs]
        return json_answer(list_view(data, has_more=has_more))

    async def cancel(self, request: Request, run_id: str) -> Response:
        """End a run that has not ended; a finished one is answered as it is."""
        run = await self._service.cancel_run(principal_of(request.scope), run_id)
        return json_answer(run_view(run, self._links.make))

    async def delete(self, request: Request, run_id: str) -> Response:
        """Forget a finished run and its artifacts."""
        await self._service.delete_run(principal_of(request.scope), run_id)
        return json_answer(deleted_view("run", run_id))

    async def _read_rules(self) -> RunRules:
        """What is accepted. The languages are fixed once the service has started."""
        languages = await self._service.languages()
        config = self._config
        rules = RunRules(
            languages={language.id: language.file_name for language in languages},
            aliases={alias: language.id for language in languages for alias in language.aliases},
            defaults=config.defaults,
            maxima=config.maxima,
            max_code_bytes=config.max_code_bytes,
            max_file_bytes=config.max_file_bytes,
            max_files_bytes=config.max_files_bytes,
        )
        if languages:
            self._rules = rules
        return rules

    def endpoints(self) -> list[Endpoint]:
        """The list of this module's endpoints."""
        create = {"requestBody": _request_body(), "parameters": [_IDEMPOTENCY_PARAMETER]}
        creating = (400, 408, 409, 413, 415, 429, 503)
        page = {"parameters": _PAGE_PARAMETERS}
        one = "/v1/runs/{run_id}"
        # fmt: off
        return [
            Endpoint("POST", "/v1/runs", self.create, "createRun", "Run code", "runs",
                     RunObject, creating, extra=create),
            Endpoint("GET", "/v1/runs", self.browse, "listRuns", "List own runs", "runs",
                     RunList, (400,), extra=page),
            Endpoint("GET", one, self.read, "getRun", "Read a run", "runs", RunObject, (404,)),
            Endpoint("POST", one + "/cancel", self.cancel, "cancelRun", "Cancel a run", "runs",
                     RunObject, (404,)),
            Endpoint("DELETE", one, self.delete, "deleteRun", "Forget a finished run", "runs",
                     DeletedObject, (404, 409)),
        ]
        # fmt: on


def require_json(request: Request) -> None:
    """Accept ``application/json`` in UTF-8 and nothing else.

    Raises:
        UnsupportedMedia: another type, none, or another charset.
    """
    given = header_values(request.scope, b"content-type") or [""]
    kind, _, parameters = given[0].partition(";")
    charset = parameters.strip().lower().replace('"', "")
    if kind.strip().lower() != "application/json" or charset not in ("", "charset=utf-8"):
        raise UnsupportedMedia("The body must be application/json.")


def _idempotency_key(request: Request) -> str | None:
    given = header_values(request.scope, b"idempotency-key")
    if not given:
        return None
    if len(given) > 1 or not _IDEMPOTENCY_KEY.fullmatch(given[0]):
        raise InvalidRequest(
            "Idempotency-Key must be there once, with 1 to 255 printable ASCII characters.",
            param="Idempotency-Key",
        )
    return given[0]


def _status(text: str | None) -> RunStatus | None:
    if text is None:
        return None
    try:
        return RunStatus(text)
    except ValueError:
        names = ", ".join(status.value for status in RunStatus)
        raise InvalidRequest(f"status must be one of {names}.", param="status") from None


def _request_body() -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/RunBody"}
    return {
        "required": True,
        "content": {"application/json": {"schema": schema, "examples": RUN_EXAMPLES}},
    }


_IDEMPOTENCY_PARAMETER = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same key and body answer with the same run for 24 hours.",
    "schema": {"type": "string", "maxLength": 255},
}
_PAGE_PARAMETERS = [
    query_parameter(
        "limit", "How many.", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": 20}
    ),
    query_parameter("after", "The last id of the page before.", {"type": "string"}),
    query_parameter(
        "status", "Only these.", {"type": "string", "enum": [status.value for status in RunStatus]}
    ),
    query_parameter("language", "Only these.", {"type": "string"}),
]
