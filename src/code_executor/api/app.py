"""The application: a list of endpoints, a list of middleware, and the OpenAPI document."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from code_executor import __version__
from code_executor.api.answers import AnswerGuard
from code_executor.api.config import EdgeConfig
from code_executor.api.endpoint import DirectRoute, Endpoint, ExactPaths, error_example
from code_executor.api.errors import json_answer
from code_executor.api.files import FORM_OVERHEAD_BYTES, Files
from code_executor.api.links import Links
from code_executor.api.meta import Meta
from code_executor.api.middleware import (
    Authenticate,
    BodyGuard,
    Cors,
    Envelope,
    ErrorShape,
    RateLimit,
)
from code_executor.api.runs import Runs
from code_executor.api.schemas import UploadBody
from code_executor.api.service_port import ServicePort
from code_executor.auth import KeyRing
from code_executor.clock import SystemClock
from code_executor.observe import Metrics
from code_executor.ports import Clock
from code_executor.ratelimit import RateLimiter
from code_executor.signing import Signer
from code_executor.wire import RunBody


class Application(FastAPI):
    """FastAPI for the routes and their document; between the server and them, our middleware only.

    FastAPI's own would be ten more layers around every request, each way, and have nothing to do:
    errors are :class:`ErrorShape`'s, bodies :class:`BodyGuard`'s, and nothing is validated or
    injected.
    """

    def build_middleware_stack(self) -> ASGIApp:
        """The middleware around the router, outermost first."""
        app: ASGIApp = ExactPaths(self.router)
        for cls, args, kwargs in reversed(self.user_middleware):
            app = cls(app, *args, **kwargs)
        return app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self.middleware_stack is None:
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        await self.middleware_stack(scope, receive, send)


def create_app(
    service: ServicePort,
    *,
    keys: KeyRing,
    signer: Signer,
    limiter: RateLimiter | None = None,
    config: EdgeConfig | None = None,
    metrics: Metrics | None = None,
    clock: Clock | None = None,
) -> Application:
    """The ASGI application in front of ``service``, which its caller starts and stops."""
    config, metrics = config or EdgeConfig(), metrics or Metrics()
    clock, limiter = clock or SystemClock(), limiter or RateLimiter()
    links = Links(signer, base_url=config.public_base_url, ttl_s=config.link_ttl_s, clock=clock)
    app = Application(
        title="Code Executor",
        version=__version__,
        middleware=_middleware(config, keys, limiter, metrics, clock),
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.router.route_class = DirectRoute
    endpoints = [
        *Runs(service, config, links).endpoints(),
        *Files(service, config, links).endpoints(),
        *Meta(service, config, metrics).endpoints(),
    ]
    for endpoint in endpoints:
        endpoint.add_to(app)
    _serve_openapi(app, config.public_base_url)
    return app


def _middleware(
    config: EdgeConfig, keys: KeyRing, limiter: RateLimiter, metrics: Metrics, clock: Clock
) -> list[Middleware]:
    """Outermost first; see :mod:`code_executor.api.middleware` for why in this order."""
    caps = {
        ("POST", "/v1/runs"): config.max_body_bytes,
        ("POST", "/v1/files"): config.max_file_bytes + FORM_OVERHEAD_BYTES,
    }
    return [
        Middleware(Envelope, metrics=metrics, monotonic=clock.monotonic),
        Middleware(
            Cors,
            allow_origins=config.cors_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=EXPOSED_HEADERS,
        ),
        Middleware(ErrorShape),
        Middleware(Authenticate, keys=keys),
        Middleware(RateLimit, limiter=limiter, metrics=metrics, monotonic=clock.monotonic),
        Middleware(AnswerGuard),
        Middleware(
            BodyGuard,
            caps=caps,
            timeout_s=config.body_timeout_s,
            max_buffered=config.max_buffered_bytes,
        ),
    ]


EXPOSED_HEADERS = (
    "X-Request-Id",
    "RateLimit-Limit",
    "RateLimit-Remaining",
    "RateLimit-Reset",
    "Retry-After",
    "Content-Disposition",
)


def _serve_openapi(app: FastAPI, base_url: str) -> None:
    document = openapi_document(app, base_url)
    app.openapi = lambda: document  # type: ignore[method-assign]  # FastAPI's documented way

    async def openapi(_request: Request) -> Response:
        return json_answer(document)

    Endpoint(
        "GET", "/openapi.json", openapi, "getOpenapi", "This document", "pages",
        needs_key=False, documented=False,
    ).add_to(app)  # fmt: skip


def openapi_document(app: FastAPI, base_url: str) -> dict[str, Any]:
    """OpenAPI 3.1: the routes as FastAPI sees them, with the request bodies and the key added."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        summary="Runs untrusted code in hardened single-use sandboxes.",
        routes=app.routes,
        servers=[{"url": base_url}],
    )
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    schemas.update(_request_schemas())
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    for operation in _operations(document):
        operation["responses"].pop("422", None)  # never answered
        for status, response in operation["responses"].items():
            if status != "200":
                response["content"]["application/json"]["example"] = error_example(int(status))
    return document


def _request_schemas() -> dict[str, Any]:
    _, definitions = models_json_schema(
        [(RunBody, "validation"), (UploadBody, "validation")],
        ref_template="#/components/schemas/{model}",
    )
    return dict(definitions["$defs"])


def _operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for path in document["paths"].values() for operation in path.values()]
