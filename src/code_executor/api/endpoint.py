"""An endpoint as data: what the router needs and what the OpenAPI document tells."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute, APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from code_executor.api.errors import TYPES, error_body
from code_executor.api.schemas import ErrorObject

Handler = Callable[..., Awaitable[Response]]

_COMMON = (500,)
_WITH_KEY = (401,)
_EXAMPLES = {
    400: ("invalid_request", "code is required.", "code"),
    401: ("invalid_api_key", "The API key is not valid.", None),
    403: ("invalid_link", "The link is not valid or has expired.", None),
    404: ("not_found", "There is no such run.", None),
    408: ("request_timeout", "The body did not arrive in time.", None),
    409: ("conflict", "The Idempotency-Key was used with another request body.", "Idempotency-Key"),
    413: ("payload_too_large", "The body is too large; the maximum is 50331648 bytes.", None),
    415: ("unsupported_media_type", "The body must be application/json.", None),
    429: (
        "rate_limited",
        "Too many runs and uploads with this API key: it may make 5 a second, and 10 at once.",
        None,
    ),
    500: ("internal", "Something went wrong here.", None),
    503: ("queue_full", "Too many runs wait already.", None),
}


class DirectRoute(APIRoute):
    """A route as FastAPI documents it and as plain ASGI runs it.

    The handler takes the request and its path parameters and makes its answer itself, so
    FastAPI's solving of dependencies and its exit stacks would do nothing but take time.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app = self._call

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        response = await self.endpoint(request, **request.path_params)
        await response(scope, receive, send)


class ExactPaths:
    """In front of a router: a path without parameters is looked up, not tried route by route."""

    def __init__(self, router: APIRouter) -> None:
        self.app = router
        self.routes = {
            (method, route.path): route
            for route in router.routes
            if isinstance(route, DirectRoute) and not route.param_convertors
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        known = scope["type"] == "http" and self.routes.get((scope["method"], scope["path"]))
        if not known:
            await self.app(scope, receive, send)
            return
        scope["route"] = known
        await known.app(scope, receive, send)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method at one path. ``answer`` is the shape of its 200; ``errors`` its other statuses."""

    method: str
    path: str
    handler: Handler
    operation_id: str
    summary: str
    tag: str
    answer: type[BaseModel] | None = None
    errors: tuple[int, ...] = ()
    needs_key: bool = True
    documented: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)

    def add_to(self, app: FastAPI) -> None:
        """Route it; the answer goes out as the handler made it."""
        app.add_api_route(
            self.path,
            self.handler,
            methods=[self.method],
            operation_id=self.operation_id,
            summary=self.summary,
            tags=[self.tag],
            responses=self._responses(),
            response_model=None,
            include_in_schema=self.documented,
            openapi_extra={"security": [{"bearer": []}] if self.needs_key else [], **self.extra},
        )

    def _responses(self) -> dict[int | str, dict[str, Any]]:
        responses: dict[int | str, dict[str, Any]] = {}
        if self.answer is not None:
            responses[200] = {"model": self.answer, "description": self.summary}
        statuses = {*self.errors, *_COMMON, *(_WITH_KEY if self.needs_key else ())}
        for status in sorted(statuses):
            description = TYPES[status].replace("_", " ")
            responses[status] = {"model": ErrorObject, "description": description}
        return responses


def query_parameter(name: str, description: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """An optional query parameter, for ``Endpoint.extra``."""
    return {
        "name": name,
        "in": "query",
        "required": False,
        "description": description,
        "schema": dict(schema),
    }


def error_example(status: int) -> dict[str, Any]:
    """What an answer with ``status`` looks like."""
    code, message, param = _EXAMPLES[status]
    return error_body(status, code, message, param, "req_0123456789abcdef01234567")
