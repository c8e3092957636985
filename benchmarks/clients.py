"""Load over HTTP that costs little: prepared request bytes, few system calls, no framework.

Theory of operation. One thread. A :class:`Connection` is one keep-alive connection with at most
one request on its way. :func:`closed_loop` keeps every connection busy: an answer is at once
followed by the next request. :func:`open_loop` sends at given moments, whatever became of the
requests before, and counts a request's time from the moment at which it was due, so that a
stall is felt by all who would have come during it. Both wait in ``select``, whose time-outs are
exact to the microsecond (``epoll`` rounds to milliseconds).

An answer other than 200 with ``"status":"succeeded"`` ends the benchmark: numbers with failures
among them mean nothing.
"""

from __future__ import annotations

import json
import re
import select
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

Address = tuple[str, int]

ANSWER_S = 60.0
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.I)
_SUCCEEDED = b'"status":"succeeded"'


class BadAnswer(Exception):
    """The service answered something else than a benchmark can count."""


def request_bytes(
    method: str, path: str, *, token: str | None = None, body: object = None
) -> bytes:
    """One request as it goes over the wire."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(content)}"]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    if content:
        lines.append("Content-Type: application/json")
    return "\r\n".join([*lines, "", ""]).encode() + content


class Connection:
    """One keep-alive connection; a context manager."""

    def __init__(self, address: Address) -> None:
        self._socket = socket.create_connection(address, timeout=ANSWER_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = bytearray()
        self._body_at = self._expected = 0
        self.since = 0.0
        """When the request on its way was sent, or due; for whoever measures."""

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """For ``select``."""
        return self._socket.fileno()

    def send(self, request: bytes) -> None:
        """Put a request on its way; the one before has been answered."""
        self._received.clear()
        self._expected = 0
        self._socket.sendall(request)

    def receive(self) -> bytes | None:
        """Take what has come; the body when the answer is complete.

        Raises:
            BadAnswer: not 200, or the connection was closed.
        """
        data = self._socket.recv(1 << 18)
        if not data:
            raise BadAnswer("the service closed the connection")
        self._received += data
        if not self._expected:
            self._read_head()
        if not self._expected or len(self._received) < self._expected:
            return None
        return bytes(memoryview(self._received)[self._body_at : self._expected])

    def call(self, request: bytes) -> bytes:
        """Send, and wait for the whole answer."""
        self.send(request)
        while (body := self.receive()) is None:
            pass
        return body

    def _read_head(self) -> None:
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(self._received, 0, end + 2)
        if not self._received.startswith(b"HTTP/1.1 200 ") or length is None:
            raise BadAnswer(bytes(self._received[:2000]).decode(errors="replace"))
        self._body_at = end + 4
        self._expected = self._body_at + int(length[1])


@dataclass(slots=True)
class Load:
    """What a load measured: seconds of each request, of all of it, and of our own CPU."""

    latencies: list[float] = field(default_factory=list)
    elapsed: float = 0.0
    own_cpu: float = 0.0

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.latencies) / self.elapsed

    @property
    def own_share(self) -> float:
        """The load generator's part of one core."""
        return self.own_cpu / self.elapsed


def closed_loop(address: Address, request: bytes, clients: int, seconds: float) -> Load:
    """``clients`` that each send the next request when the last one is answered."""
    connections = [Connection(address) for _ in range(clients)]
    load, started, cpu = Load(), time.perf_counter(), time.process_time()
    try:
        for connection in connections:
            connection.since = time.perf_counter()
            connection.send(request)
        busy = clients
        while busy:
            for connection in _ready(connections, ANSWER_S):
                if not _answered(connection, load):
                    continue
                connection.since = time.perf_counter()
                if connection.since - started < seconds:
                    connection.send(request)
                else:
                    busy -= 1
        load.elapsed, load.own_cpu = time.perf_counter() - started, time.process_time() - cpu
    finally:
        _close(connections)
    return load


def open_loop(address: Address, request: bytes, arrivals: Sequence[float]) -> Load:
    """Requests due at ``arrivals``: seconds from the start, ascending."""
    idle = deque(Connection(address) for _ in range(8))
    busy: list[Connection] = []
    due = deque(arrivals)
    load, started, cpu = Load(), time.perf_counter(), time.process_time()
    try:
        while due or busy:
            now = time.perf_counter() - started
            while due and due[0] <= now:
                connection = idle.popleft() if idle else Connection(address)
                busy.append(connection)
                connection.since = started + due.popleft()
                connection.send(request)
            for connection in _ready(busy, due[0] - now if due else ANSWER_S):
                if _answered(connection, load):
                    busy.remove(connection)
                    idle.append(connection)
        load.elapsed, load.own_cpu = time.perf_counter() - started, time.process_time() - cpu
    finally:
        _close([*idle, *busy])
    return load


def follow(url: str) -> tuple[Address, str]:
    """The address of ``url``, and the path with its query."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    path = f"{parts.path}?{parts.query}" if parts.query else parts.path
    return (parts.hostname, parts.port or 80), path


def _ready(connections: Sequence[Connection], seconds: float) -> Iterator[Connection]:
    ready, _, _ = select.select(connections, (), (), max(0.0, seconds))
    if not ready and seconds >= ANSWER_S:
        raise BadAnswer(f"no answer within {ANSWER_S:.0f} s")
    yield from ready


def _answered(connection: Connection, load: Load) -> bool:
    """Take what has come; counts the answer when it is complete."""
    body = connection.receive()
    if body is None:
        return False
    load.latencies.append(time.perf_counter() - connection.since)
    if _SUCCEEDED not in body[:200]:
        raise BadAnswer(body[:2000].decode(errors="replace"))
    return True


def _close(connections: Sequence[Connection]) -> None:
    for connection in connections:
        with connection:
            pass
