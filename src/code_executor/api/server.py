"""The server under the application: uvicorn, with clocks on what it leaves open.

uvicorn bounds neither the time nor the size of a request's headers, nor how long it writes to
somebody who does not read, nor how many connect. ``GuardedProtocol`` adds three bounds to one
connection:

* from the connection's (or the next request's) first moment until its headers are complete:
  ``HEADER_TIMEOUT_S`` and ``MAX_HEADER_BYTES``;
* while the peer's side is full: ``WRITE_TIMEOUT_S``, after which the connection is dropped;
* after an answer that came before the body was read: ``MAX_UNREAD_BYTES`` are swallowed, so
  that the client sees the answer, then the connection is closed.

and one to all together: past ``max_connections``, a new one takes the place of the one that has
waited longest without a request; a crowd that only holds connections open holds nobody up, and
leaves descriptors for the sandboxes.

Beside the bounds, an answer goes out in one write instead of two (:class:`OneWrite`): each is a
system call and a wake-up of the client.

The bound on the body itself is the application's (``middleware.BodyGuard``), which can say so.
"""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_TIMEOUT_S = 10.0
WRITE_TIMEOUT_S = 30.0
MAX_HEADER_BYTES = 64 * 1024
MAX_UNREAD_BYTES = 64 * 1024 * 1024
KEEP_ALIVE_S = 30
MAX_CONNECTIONS = 8192
JOINED_MAX_BYTES = 64 * 1024


class OneWrite:
    """A transport that joins two small writes which come one right after the other.

    uvicorn writes an answer's head and its body one by one. What is written first waits for a
    second until the loop's next turn; everything else goes to the transport as it is.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""
        self._flushing: asyncio.Handle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write, now or with what comes next."""
        if self._held:
            held = self._take()
            if len(data) <= JOINED_MAX_BYTES:
                self._transport.write(held + data)
                return
            self._transport.write(held)
        elif 0 < len(data) <= JOINED_MAX_BYTES:
            self._held = data
            self._flushing = self._loop.call_soon(self._flush)
            return
        self._transport.write(data)

    def close(self) -> None:
        """Close when everything is written."""
        self._flush()
        self._transport.close()

    def _take(self) -> bytes:
        assert self._flushing is not None
        self._flushing.cancel()
        held, self._held, self._flushing = self._held, b"", None
        return held

    def _flush(self) -> None:
        if self._held:
            self._transport.write(self._take())


class GuardedProtocol(HttpToolsProtocol):
    """One connection. All its methods run on the event loop."""

    header_timeout_s = HEADER_TIMEOUT_S
    write_timeout_s = WRITE_TIMEOUT_S
    max_connections = MAX_CONNECTIONS
    idle: dict[GuardedProtocol, None]  # of one server: without a request, longest first

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._header_bytes = 0
        self._unread_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(OneWrite(transport, self.loop))  # type: ignore[arg-type]  # as one
        self._await_headers()
        if len(self.connections) > self.max_connections:
            next(iter(self.idle), self)._drop()
        self.idle[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        self.idle.pop(self, None)
        self._cancel_header_timer()
        self._cancel_write_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._header_timer is not None:
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                self._drop()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._unread_bytes = 0
        self._await_headers()

    def on_headers_complete(self) -> None:
        self._cancel_header_timer()
        self.idle.pop(self, None)
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.timeout_keep_alive_task is not None:  # no other request of it waits
            self.idle[self] = None

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if self.cycle.response_complete:
            self._unread_bytes += len(body)
            if self._unread_bytes > MAX_UNREAD_BYTES:
                self._drop()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._cancel_write_timer()
        self._write_timer = self.loop.call_later(self.write_timeout_s, self._drop)

    def resume_writing(self) -> None:
        self._cancel_write_timer()
        super().resume_writing()

    def _await_headers(self) -> None:
        self._header_bytes = 0
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(self.header_timeout_s, self._drop)

    def _cancel_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _cancel_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _drop(self) -> None:
        """End the connection without waiting for a peer that does not keep up."""
        self.idle.pop(self, None)
        self.transport.abort()


def uvicorn_config(
    app: ASGIApp,
    *,
    host: str,
    port: int,
    shutdown_grace_s: int | None = None,
    header_timeout_s: float = HEADER_TIMEOUT_S,
    write_timeout_s: float = WRITE_TIMEOUT_S,
    max_connections: int = MAX_CONNECTIONS,
) -> uvicorn.Config:
    """How to serve ``app``: guarded, without uvicorn's own log configuration and headers."""
    protocol = type(
        "Protocol",
        (GuardedProtocol,),
        {
            "header_timeout_s": header_timeout_s,
            "write_timeout_s": write_timeout_s,
            "max_connections": max_connections,
            "idle": {},
        },
    )
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=protocol,
        ws="none",
        loop="uvloop",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=shutdown_grace_s,
    )
