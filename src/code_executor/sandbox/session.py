"""The host's side of one conversation with an init; the same for every backend.

Theory of operation. A session owns a :class:`Channel` and one *expectation* at a time: the frame
kind that completes the present step, as a future. What comes before it is gathered: output into
captures, the end, entries, content. A frame that does not belong to the step breaks the channel
(:class:`ProtocolError`); a broken or ended channel fails the expectation with
:class:`SandboxUnavailable`, which the backend may turn into a verdict when it knows better (the
kernel killed init for memory, or the host itself did).

What init can make the host keep is bounded: captures by themselves, entries by count, content by
what was asked for.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence

from code_executor.errors import SandboxUnavailable
from code_executor.model import Plan
from code_executor.sandbox import frames
from code_executor.sandbox.capture import Capture, flood_limit
from code_executor.sandbox.channel import Channel, Watcher
from code_executor.sandbox.deadline import Deadline
from code_executor.sandbox.frames import Ended, Entry, Kind, ProtocolError

ENTRIES_MAX = 1000

# Which frames may come while which one is awaited.
BELONGS: dict[Kind | None, frozenset[Kind]] = {
    None: frozenset(),
    Kind.READY: frozenset({Kind.READY}),
    Kind.ENDED: frozenset({Kind.BEGAN, Kind.STDOUT, Kind.STDERR, Kind.ENDED}),
    Kind.LISTED: frozenset(
        {Kind.BEGAN, Kind.STDOUT, Kind.STDERR, Kind.ENDED, Kind.ENTRY, Kind.LISTED}
    ),
    Kind.CONTENT_END: frozenset({Kind.CONTENT, Kind.CONTENT_END}),
}


def _nothing() -> None:
    """The default of the callbacks."""


class Session:
    """One init, from its READY to its end.

    ``on_began``, ``on_ended`` and ``on_flood`` are called on the event loop when a program that was
    not waiting already starts, when it has ended, and when a stream goes far beyond its limit.
    """

    def __init__(self, sock: socket.socket, watcher: Watcher | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._channel = Channel(sock, self._on_frame, self._on_close, watcher)
        self._reason: Exception | None = None
        self._late_already = False
        self._flood = 0
        self._content = bytearray()
        self._content_room = 0
        self._ended: Ended | None = None
        self.stdout = Capture(0)
        self.stderr = Capture(0)
        self.entries: list[Entry] = []
        self.entries_truncated = False
        self.on_began: Callable[[], None] = _nothing
        self.on_ended: Callable[[], None] = _nothing
        self.on_flood: Callable[[], None] = _nothing
        self._expect(Kind.READY)

    @property
    def closed(self) -> bool:
        """Whether init is gone or was let go."""
        return self._channel.closed

    def deadline(self, seconds: float) -> Deadline:
        """From then on, unless cancelled, what is awaited here fails with :class:`TimeoutError`."""
        return Deadline(seconds, self._late)

    def _late(self) -> None:
        self._late_already = True
        if not self._answer.done():
            self._answer.set_exception(TimeoutError())

    async def ready(self) -> None:
        """Wait until the sandbox is prepared.

        Raises:
            SandboxUnavailable: a step of the preparation failed; it is named.
        """
        await self._answer

    def stage(self, plan: Plan) -> bytes:
        """The frames that put a plan's files and input in place; also sets up the captures."""
        self.stdout = Capture(plan.limits.max_output_bytes)
        self.stderr = Capture(plan.limits.max_output_bytes)
        self._flood = flood_limit(plan.limits.max_output_bytes)
        parts: list[bytes] = []
        for file in plan.files:
            parts += frames.staged(file.path, file.content, executable=file.executable)
        parts += frames.chunks(Kind.STDIN, plan.stdin)
        return b"".join(parts)

    async def execute(
        self,
        argv: Sequence[str],
        env: Sequence[str],
        *,
        warm: bool = False,
        before: bytes = b"",
    ) -> Ended:
        """Send ``before`` (staging), start a program, return when it and the listing are done.

        Raises:
            SandboxUnavailable: init failed, or is gone.
        """
        self._ended = None
        self.entries = []
        self._expect(Kind.LISTED)
        self._channel.send(before + frames.program(warm=warm, listing=True, argv=argv, env=env))
        self.entries_truncated = (await self._answer)[:1] == b"\1"
        return self._told_end()

    def _told_end(self) -> Ended:
        if self._ended is None:
            raise SandboxUnavailable("init told no end", step="protocol")
        return self._ended

    async def get(self, path: bytes, limit: int) -> bytes | None:
        """A file's content, or ``None`` when it cannot be read whole within ``limit`` bytes."""
        return await self._fetch(frames.frame(Kind.GET, path), limit)

    async def built(self, path: str, limit: int) -> bytes | None:
        """What a compile step made at ``path`` below ``/work``; ``None`` as for :meth:`get`."""
        return await self._fetch(frames.built(path, limit), limit)

    async def _fetch(self, asked: bytes, limit: int) -> bytes | None:
        self._content = bytearray()
        self._content_room = limit
        self._expect(Kind.CONTENT_END)
        self._channel.send(asked)
        error = frames.decode_u32(await self._answer)
        return None if error else bytes(self._content)

    def kill(self) -> None:
        """Ask init to end what runs; its end comes by the ordinary way."""
        self._channel.send(frames.frame(Kind.KILL))

    def close(self) -> None:
        """Let init go. Idempotent."""
        self._channel.close()
        self.on_began = self.on_ended = self.on_flood = _nothing  # they hold who holds this
        if self._answer.done() and not self._answer.cancelled():
            self._answer.exception()  # perhaps nobody waits for it any more

    # ── frames and the end of the channel ──

    def _expect(self, kind: Kind) -> None:
        self._awaited: Kind | None = kind
        self._answer: asyncio.Future[bytes] = self._loop.create_future()
        if self._late_already:
            self._answer.set_exception(TimeoutError())
        elif self._channel.closed:
            self._answer.set_exception(self._ending())

    def _on_frame(self, kind: Kind, payload: bytes) -> None:
        if kind is Kind.FAILED:
            raise failed_step(payload)
        if kind not in BELONGS[self._awaited]:
            raise ProtocolError(f"{kind.name} came while {self._awaited} was awaited")
        self._gather(kind, payload)
        if kind is self._awaited:
            self._awaited = None
            if not self._answer.done():
                self._answer.set_result(payload)

    def _gather(self, kind: Kind, payload: bytes) -> None:
        match kind:
            case Kind.STDOUT:
                self._feed(self.stdout, payload)
            case Kind.STDERR:
                self._feed(self.stderr, payload)
            case Kind.BEGAN:
                self.on_began()
            case Kind.ENDED:
                self._ended = frames.decode_ended(payload)
                self.on_ended()
            case Kind.ENTRY:
                self._entry(payload)
            case Kind.CONTENT:
                self._content_piece(payload)
            case Kind.CONTENT_END:
                frames.decode_u32(payload)  # too short a one breaks the channel here

    def _feed(self, capture: Capture, payload: bytes) -> None:
        capture.feed(payload)
        if capture.total > self._flood:
            self.on_flood()

    def _entry(self, payload: bytes) -> None:
        if len(self.entries) >= ENTRIES_MAX:
            raise ProtocolError("too many entries")
        self.entries.append(frames.decode_entry(payload))

    def _content_piece(self, payload: bytes) -> None:
        self._content_room -= len(payload)
        if self._content_room < 0:
            raise ProtocolError("a file is larger than init said")
        self._content += payload

    def _on_close(self, reason: Exception | None) -> None:
        self._reason = reason
        if not self._answer.done():
            self._answer.set_exception(self._ending())

    def _ending(self) -> SandboxUnavailable:
        """What the channel's end is for whoever awaits something; made only for such."""
        if isinstance(self._reason, SandboxUnavailable):
            return self._reason
        return SandboxUnavailable(
            f"the sandbox ended: {self._reason or 'channel closed'}", step="channel"
        )


def failed_step(payload: bytes) -> SandboxUnavailable:
    """The exception for a FAILED frame; the step's name is data and is cleaned as such."""
    error = frames.decode_u32(payload)
    step = payload[4:68].decode("ascii", "replace")
    step = "".join(c if c.isprintable() else "?" for c in step)
    reason = os.strerror(error) if 0 < error < 4096 else "no error number"
    return SandboxUnavailable(f"the sandbox failed: {reason}", step=step)
