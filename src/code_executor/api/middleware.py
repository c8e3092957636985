"""What happens to every request, outermost first; the order is the security argument.

``Envelope``      gives the request its id, writes the log line and the metrics when the answer
                  has gone, and adds the headers that every answer carries.
``Cors``          Starlette's; answers preflights, which bear no token.
``ErrorShape``    turns whatever is raised further in into the one error body.
``Authenticate``  bearer token → principal, before a byte of the body is read.
``RateLimit``     takes a token from the key's bucket for what creates something.
``AnswerGuard``   counts what a tenant has not read of its answers (:mod:`.answers`).
``BodyGuard``     counts the body while it is read: size, time, and memory over all requests.

All are plain ASGI callables: no task, queue or thread between the server and a handler. What
one of them learns is in the scope's ``state`` (:class:`RequestState`), one object per request.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, reset_contextvars

from code_executor.api.errors import error_answer
from code_executor.auth import KeyRing
from code_executor.errors import (
    PayloadTooLarge,
    QueueFull,
    RateLimited,
    ServiceError,
    Unauthenticated,
    UnsupportedMedia,
)
from code_executor.model import Principal
from code_executor.observe import Metrics, get_logger
from code_executor.ratelimit import RateLimiter

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FILE_PATH = re.compile(r"/v1/files/[^/]+")
_METHODS = frozenset({"GET", "POST", "DELETE", "OPTIONS", "HEAD", "PUT", "PATCH"})
_BY_NAME = "code_executor.headers"  # in a scope: its headers, once they were asked for
_CLIENT_GONE = 499  # only in the log and the metrics: there is nobody to answer

OPEN_PATHS = frozenset({"/v1/health"})
CREATING = frozenset({("POST", "/v1/runs"), ("POST", "/v1/files")})
EVERY_ANSWER = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)

log = get_logger("api")


@dataclass(slots=True)
class RequestState:
    """What is known of one request; ``headers`` go on its answer, whatever it is."""

    request_id: str
    principal: Principal | None = None
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    status: int = 0
    bytes_in: int = 0


def state_of(scope: Scope) -> RequestState:
    """The request's state; ``Envelope`` has put it there."""
    state: RequestState = scope["state"]["request"]
    return state


def principal_of(scope: Scope) -> Principal:
    """Who calls.

    Raises:
        Unauthenticated: nobody was authenticated, so a handler that needs somebody stays shut
            whatever the middleware let through.
    """
    principal = state_of(scope).principal
    if principal is None:
        raise Unauthenticated("No API key.")
    return principal


def header_values(scope: Scope, name: bytes) -> list[str]:
    """The values of the request's headers of this name, which is in lower case."""
    given: dict[bytes, list[str]] | None = scope.get(_BY_NAME)
    if given is None:
        given = scope[_BY_NAME] = {}
        for key, value in scope["headers"]:
            given.setdefault(key, []).append(value.decode("latin-1"))
    return given.get(name, [])


def is_signed(scope: Scope) -> bool:
    """Whether the request comes with a signed link instead of a key (nothing is verified yet)."""
    if scope["method"] != "GET" or not _FILE_PATH.fullmatch(scope["path"]):
        return False
    query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    return any(name in ("payload", "sig") for name, _ in query)


class Envelope:
    """The request's id, its log line, its numbers, and the headers of every answer."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, monotonic: Callable[[], float]) -> None:
        self.app = app
        self.metrics = metrics
        self.monotonic = monotonic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = RequestState(request_id=_request_id(header_values(scope, b"x-request-id")))
        state.headers.append((b"x-request-id", state.request_id.encode()))
        scope.setdefault("state", {})["request"] = state
        begun = self.monotonic()
        self.metrics.requests_in_flight.inc()
        bound = bind_contextvars(request_id=state.request_id)
        try:
            await self.app(scope, receive, _with_headers(send, state))
        finally:
            self.metrics.requests_in_flight.dec()
            self._report(scope, state, self.monotonic() - begun)
            reset_contextvars(**bound)

    def _report(self, scope: Scope, state: RequestState, seconds: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        status = state.status or _CLIENT_GONE
        route = getattr(scope.get("route"), "path", "unmatched")
        self.metrics.request_finished(method, route, status, seconds)
        log.info(
            "http.request",
            method=method,
            path=scope["path"],
            route=route,
            status=status,
            ms=round(seconds * 1000, 2),
            bytes_in=state.bytes_in,
            key=state.principal.key_id if state.principal else None,
            tenant=state.principal.tenant if state.principal else None,
        )


def _request_id(given: list[str]) -> str:
    if len(given) == 1 and _SANE_ID.fullmatch(given[0]):
        return given[0]
    return f"req_{secrets.token_hex(12)}"


def _with_headers(send: Send, state: RequestState) -> Send:
    """Add what every answer carries; a header that the answer has set itself stays."""

    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            state.status = message["status"]
            headers = list(message.get("headers", ()))
            present = {name for name, _ in headers}
            headers += [pair for pair in EVERY_ANSWER if pair[0] not in present]
            message["headers"] = headers + state.headers
        await send(message)

    return wrapped


class Cors(CORSMiddleware):
    """Starlette's, with a short way for what comes from no browser page (no ``Origin``)."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or header_values(scope, b"origin"):
            await super().__call__(scope, receive, send)
            return

        async def varied(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"vary", b"Origin")]
            await send(message)

        await self.app(scope, receive, varied)


class ErrorShape:
    """Whatever is raised becomes the contract's error body; the unforeseen is logged whole."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            await self.app(scope, receive, send)
        except ClientDisconnect:
            log.info("http.client_gone")
        except Exception as error:
            await self._answer(error, scope, receive, send)

    async def _answer(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        state = state_of(scope)
        if not isinstance(error, ServiceError | HTTPException):
            log.exception("http.unforeseen")
        if state.status:  # the answer has begun: all that is left is to break it off
            raise error
        await error_answer(error, state.request_id)(scope, receive, send)


class Authenticate:
    """Everything under ``/v1`` needs a key, but for the health check and signed links."""

    def __init__(self, app: ASGIApp, *, keys: KeyRing) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._needs_key(scope):
            given = header_values(scope, b"authorization")
            state_of(scope).principal = self.keys.authenticate(given)
        await self.app(scope, receive, send)

    @staticmethod
    def _needs_key(scope: Scope) -> bool:
        path = scope["path"]
        if not path.startswith("/v1") or path in OPEN_PATHS:
            return False
        return not is_signed(scope)


class RateLimit:
    """Creating a run or a file costs a token; every other answer shows the level."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        limiter: RateLimiter,
        metrics: Metrics,
        monotonic: Callable[[], float],
    ) -> None:
        self.app = app
        self.limiter = limiter
        self.metrics = metrics
        self.monotonic = monotonic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and state_of(scope).principal is not None:
            self._check(scope, state_of(scope))
        await self.app(scope, receive, send)

    def _check(self, scope: Scope, state: RequestState) -> None:
        cost = int((scope["method"], scope["path"]) in CREATING)
        principal = principal_of(scope)
        decision = self.limiter.check(principal, cost=cost, now=self.monotonic())
        state.headers += [
            (name.lower().encode(), value.encode()) for name, value in decision.headers()
        ]
        if not decision.allowed:
            self.metrics.rate_limited.inc()
            raise RateLimited(
                "Too many runs and uploads with this API key: it may make "
                f"{principal.rps:g} a second, and {principal.burst} at once.",
                retry_after_s=decision.retry_after_s,
            )


class BodyGuard:
    """Bounds on the body while it is read, whatever ``Content-Length`` said.

    ``caps`` gives the cap of a ``(method, path)``; every other endpoint has ``DEFAULT_CAP``.
    ``buffered`` counts the bytes of all bodies in memory, because a handler keeps its body
    until it has answered.
    """

    DEFAULT_CAP = 64 * 1024

    def __init__(
        self,
        app: ASGIApp,
        *,
        caps: dict[tuple[str, str], int],
        timeout_s: float,
        max_buffered: int,
    ) -> None:
        self.app = app
        self.caps = caps
        self.timeout_s = timeout_s
        self.max_buffered = max_buffered
        self.buffered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        cap = self.caps.get((scope["method"], scope["path"]), self.DEFAULT_CAP)
        _refuse_encoding(scope)
        _refuse_announced(scope, cap)
        state = state_of(scope)
        try:
            await self.app(scope, self._guarded(receive, state, cap), send)
        finally:
            self.buffered -= state.bytes_in

    def _guarded(self, receive: Receive, state: RequestState, cap: int) -> Receive:
        deadline: float | None = None
        complete = False

        async def guarded() -> Message:
            nonlocal deadline, complete
            if complete:  # what follows the body is only "the client has gone"
                return await receive()
            now = asyncio.get_running_loop().time()
            deadline = now + self.timeout_s if deadline is None else deadline
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, headers={"Connection": "close"}) from None
            self._count(len(message.get("body", b"")), state, cap)
            complete = not message.get("more_body", False)
            return message

        return guarded

    def _count(self, size: int, state: RequestState, cap: int) -> None:
        state.bytes_in += size
        self.buffered += size
        if state.bytes_in > cap:
            raise _too_large(cap)
        if self.buffered > self.max_buffered:
            raise QueueFull("Too many large requests at once. Try again later.")


def _refuse_encoding(scope: Scope) -> None:
    encodings = header_values(scope, b"content-encoding")
    if encodings and encodings[0].strip().lower() != "identity":
        raise UnsupportedMedia("A compressed request body is not taken.")


def _refuse_announced(scope: Scope, cap: int) -> None:
    announced = (header_values(scope, b"content-length") or ["0"])[0]
    if announced.isascii() and announced.isdigit() and int(announced[:20]) > cap:
        raise _too_large(cap)


def _too_large(cap: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body is too large; the maximum is {cap} bytes.")
