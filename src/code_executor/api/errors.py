"""Failures as HTTP answers: one table, one body shape, nothing of a 500 but its request id."""

from __future__ import annotations

import json
from collections.abc import Iterable

from pydantic_core import PydanticSerializationError, to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response

from code_executor.errors import (
    Conflict,
    Forbidden,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    QueueFull,
    RateLimited,
    SandboxUnavailable,
    ServiceError,
    Unauthenticated,
    UnsupportedMedia,
)

STATUS: dict[type[ServiceError], int] = {
    InvalidRequest: 400,
    PayloadTooLarge: 413,
    Unauthenticated: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    UnsupportedMedia: 415,
    RateLimited: 429,
    QueueFull: 503,
    SandboxUnavailable: 503,
    ServiceError: 500,
}
"""The HTTP status of each class; a class that is not here has its nearest base's."""

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "api_error",
    503: "service_unavailable_error",
}
"""The ``type`` of each status."""

_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
_HTTP_CODES = {
    404: ("not_found", "There is nothing at this address."),
    405: ("method_not_allowed", "This address does not take this method."),
    408: ("request_timeout", "The body did not arrive in time."),
    413: ("payload_too_large", "The body is too large."),
}


def status_of(error: ServiceError) -> int:
    """The HTTP status for ``error``."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def error_answer(error: Exception, request_id: str) -> Response:
    """The answer for a failure; one that is not ours says nothing but that it happened."""
    if isinstance(error, ServiceError):
        return _service_error(error, request_id)
    if isinstance(error, HTTPException):
        return _http_error(error, request_id)
    body = error_body(500, "internal", "Something went wrong here.", None, request_id)
    return json_answer(body, 500)


def _service_error(error: ServiceError, request_id: str) -> Response:
    status = status_of(error)
    body = error_body(status, error.code, error.message, error.param, request_id)
    return json_answer(body, status, _headers(error))


def _headers(error: ServiceError) -> list[tuple[str, str]]:
    if isinstance(error, Unauthenticated):
        return [("WWW-Authenticate", "Bearer")]
    if isinstance(error, QueueFull):
        return [("Retry-After", str(max(1, round(error.retry_after_s))))]
    return []  # RateLimited: its headers come from the bucket's decision


def _http_error(error: HTTPException, request_id: str) -> Response:
    """What the router or a parser refused."""
    status = error.status_code if error.status_code in TYPES else 400
    code, message = _HTTP_CODES.get(status, ("invalid_request", str(error.detail)))
    body = error_body(status, code, message, None, request_id)
    return json_answer(body, status, (error.headers or {}).items())


def error_body(
    status: int, code: str, message: str, param: str | None, request_id: str
) -> dict[str, object]:
    """The one shape of every error."""
    return {
        "error": {
            "type": TYPES[status],
            "code": code,
            "message": message,
            "param": param,
            "request_id": request_id,
        }
    }


def json_answer(
    value: object, status: int = 200, headers: Iterable[tuple[str, str]] = ()
) -> Response:
    """``value`` as a JSON answer. Text that is not text (lone surrogates) becomes ``?``."""
    try:
        body = to_json(value)
    except PydanticSerializationError:  # a lone surrogate
        body = _JSON.encode(value).encode("utf-8", "replace")
    return Response(body, status, dict(headers), media_type="application/json")
