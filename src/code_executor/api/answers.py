"""A bound on the answers that wait in memory for somebody to read them.

An answer of the API is made whole and handed to the server, which keeps it until the client has
read it. :class:`AnswerGuard` counts these bytes per tenant and refuses more than ``max_waiting``
(the first is always let through), so clients that ask for much and read nothing exhaust their own
share only. Small answers and streams, of which a piece at a time is in memory, are not counted.

Theory of operation. The server writes a message at once and makes the *next* one of that answer
wait until the client has taken most of it. So a large answer is sent as two messages, its bytes
and an empty end; it counts until the end could be sent.
"""

from __future__ import annotations

from collections import Counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from code_executor.api.middleware import state_of
from code_executor.errors import QueueFull

SMALL_BYTES = 64 * 1024
MAX_WAITING_BYTES = 128 * 1024 * 1024


class AnswerGuard:
    """Bounds the unread answers of each tenant; ``waiting`` has their bytes."""

    def __init__(self, app: ASGIApp, *, max_waiting: int = MAX_WAITING_BYTES) -> None:
        self.app = app
        self.max_waiting = max_waiting
        self.waiting: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        principal = state_of(scope).principal if scope["type"] == "http" else None
        if principal is not None:
            send = self._guarded(send, principal.tenant)
        await self.app(scope, receive, send)

    def _guarded(self, send: Send, tenant: str) -> Send:
        start: Message | None = None

        async def guarded(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message  # held back: after it nothing could be refused any more
                return
            large = _is_large(message) and start is not None
            if large:
                self._refuse_too_much(tenant, len(message["body"]))
            if start is not None:
                await send(start)
                start = None
            await (self._send_large(send, message, tenant) if large else send(message))

        return guarded

    def _refuse_too_much(self, tenant: str, size: int) -> None:
        """The answer was made in vain, but nothing of it is kept."""
        if self.waiting[tenant] and self.waiting[tenant] + size > self.max_waiting:
            raise QueueFull("Too many large answers have not been read yet. Try again later.")

    async def _send_large(self, send: Send, message: Message, tenant: str) -> None:
        size = len(message["body"])
        self.waiting[tenant] += size
        try:
            await send({**message, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self.waiting[tenant] -= size


def _is_large(message: Message) -> bool:
    """Whether it is a whole answer in one piece, and not a small one."""
    return len(message.get("body", b"")) > SMALL_BYTES and not message.get("more_body", False)
