"""What the service tells about itself: languages, health, readiness, metrics, docs."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from code_executor.api.config import EdgeConfig
from code_executor.api.endpoint import Endpoint, Handler
from code_executor.api.errors import error_body, json_answer
from code_executor.api.middleware import state_of
from code_executor.api.schemas import HealthObject, LanguageList, ModelList, ReadyObject
from code_executor.api.service_port import ServicePort
from code_executor.api.views import language_view, promise_view
from code_executor.observe import METRICS_CONTENT_TYPE, Metrics

_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Meta:
    """Endpoints that say how the service is."""

    def __init__(self, service: ServicePort, config: EdgeConfig, metrics: Metrics) -> None:
        self._service = service
        self._config = config
        self._metrics = metrics

    async def languages(self, _request: Request) -> Response:
        """Every language, available or why not."""
        languages = await self._service.languages()
        defaults, maxima = self._config.defaults, self._config.maxima
        data = [language_view(language, defaults, maxima) for language in languages]
        return json_answer({"object": "list", "data": data})

    async def health(self, _request: Request) -> Response:
        """The process answers; says nothing of the sandbox."""
        return json_answer({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Whether programs can be run, and which promises are kept, broken or waived."""
        readiness = await self._service.ready()
        posture: dict[str, Any] = {
            "backend": readiness.backend,
            "waived": [promise.id for promise in readiness.promises if promise.waived],
            "promises": [promise_view(promise) for promise in readiness.promises],
        }
        if readiness.ok:
            return json_answer({"status": "ready", **posture})
        request_id = state_of(request.scope).request_id
        message = readiness.reason or "The service is not ready."
        error = error_body(503, "not_ready", message, None, request_id)
        return json_answer({**error, "status": "not_ready", **posture}, 503)

    async def metrics(self, _request: Request) -> Response:
        """The numbers, for Prometheus."""
        return Response(self._metrics.text(), headers={"Content-Type": METRICS_CONTENT_TYPE})

    async def models(self, _request: Request) -> Response:
        """Nothing: front ends look for a list of models here."""
        return json_answer({"object": "list", "data": []})

    def endpoints(self) -> list[Endpoint]:
        """The list of this module's endpoints."""
        # fmt: off
        return [
            Endpoint("GET", "/v1/languages", self.languages, "listLanguages",
                     "List the languages", "service", LanguageList, (503,)),
            Endpoint("GET", "/v1/health", self.health, "getHealth", "Liveness", "service",
                     HealthObject, needs_key=False),
            Endpoint("GET", "/v1/ready", self.ready, "getReady", "Readiness", "service",
                     ReadyObject, (503,)),
            Endpoint("GET", "/metrics", self.metrics, "getMetrics", "Prometheus metrics",
                     "service", needs_key=False, extra=_TEXT),
            Endpoint("GET", "/v1/models", self.models, "listModels", "An empty list", "service",
                     ModelList),
            Endpoint("GET", "/models", self.models, "listModelsAtRoot", "An empty list",
                     "service", ModelList, needs_key=False),
            Endpoint("GET", "/", static("home.html", "text/html"), "getHome", "Home", "pages",
                     needs_key=False, documented=False),
            Endpoint("GET", "/docs", static("docs.html", "text/html"), "getDocs", "Docs",
                     "pages", needs_key=False, documented=False),
            Endpoint("GET", "/docs/docs.js", static("docs.js", "text/javascript"), "getDocsJs",
                     "Docs", "pages", needs_key=False, documented=False),
            Endpoint("GET", "/docs/docs.css", static("docs.css", "text/css"), "getDocsCss",
                     "Docs", "pages", needs_key=False, documented=False),
        ]
        # fmt: on


def static(name: str, content_type: str) -> Handler:
    """A handler that answers with a file of this package, read once."""
    content = files("code_executor.api").joinpath("static", name).read_bytes()
    headers = {
        "Content-Type": f"{content_type}; charset=utf-8",
        "Content-Security-Policy": _PAGE_POLICY,
        "Cache-Control": "no-cache",
    }

    async def handler(_request: Request) -> Response:
        return Response(content, headers=headers)

    return handler


_TEXT = {
    "responses": {
        "200": {
            "description": "Text exposition format.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        }
    }
}
