"""One end of a control channel on the event loop: bytes out, frames in.

A plain non-blocking socket and its reader callback: a transport's own buffers and flow control
would cost more than a whole short run sends. Writing tries the socket first and keeps what did not
fit. Anything wrong (end of stream, an error, a broken frame) closes the channel and is told once.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Protocol

from code_executor.errors import SandboxUnavailable
from code_executor.sandbox.frames import Decoder, Kind, ProtocolError

READ_SIZE = 256 * 1024


def _ignore_frame(kind: Kind, payload: bytes) -> None:
    """What a closed channel calls."""


def _ignore_close(reason: Exception | None) -> None:
    """What a closed channel calls."""


class Watcher(Protocol):
    """Who tells that a descriptor can be read: an event loop, or ``turns.Readers``."""

    def add_reader(self, fd: int, callback: Callable[[], None], /) -> object:
        """Begin to."""

    def remove_reader(self, fd: int, /) -> object:
        """Stop it."""


class Channel:
    """Frames to and from one init.

    ``on_frame`` is called for each frame and may raise ProtocolError or SandboxUnavailable, which
    closes the channel; ``on_close`` is called once, with the reason (``None``: the other
    end closed). Both run on the event loop and must not block.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_frame: Callable[[Kind, bytes], None],
        on_close: Callable[[Exception | None], None],
        watcher: Watcher | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self._on_frame = on_frame
        self._on_close = on_close
        self._decoder = Decoder()
        self._unsent = bytearray()
        self._closed = False
        self._reading = False
        sock.setblocking(False)
        self._watcher = watcher or self._loop
        self._watcher.add_reader(sock.fileno(), self._readable)

    @property
    def closed(self) -> bool:
        """Whether nothing more will come or go."""
        return self._closed

    def send(self, data: bytes) -> None:
        """Send, now or as the socket takes it; silently nothing on a closed channel."""
        if self._closed:
            return
        if not self._unsent:
            data = data[self._try_send(data) :]
            if data and not self._closed:
                self._loop.add_writer(self._socket.fileno(), self._writable)
        self._unsent += data

    def _try_send(self, data: bytes | bytearray) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            if not self._reading:  # what was read before is still being told: nothing overtakes it
                self._readable(error)  # its last words tell more than that nobody listens
            self.close(error)
            return len(data)

    def _writable(self) -> None:
        sent = self._try_send(self._unsent)
        if self._closed:
            return
        del self._unsent[:sent]
        if not self._unsent:
            self._loop.remove_writer(self._socket.fileno())

    def _readable(self, otherwise: Exception | None = None) -> None:
        try:
            data = self._socket.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            self.close(otherwise or error)
            return
        if not data:
            self.close(otherwise)
            return
        self._reading = True
        try:
            for kind, payload in self._decoder.feed(data):
                self._on_frame(kind, payload)
        except (ProtocolError, SandboxUnavailable) as error:
            self.close(error)
        finally:
            self._reading = False

    def close(self, reason: Exception | None = None) -> None:
        """Close the socket; init, which sees its end, ends too. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._watcher.remove_reader(self._socket.fileno())
        if self._unsent:
            self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        on_close = self._on_close
        # Its owner owns it: without a way back, both go when nobody needs them any more, and the
        # collector has nothing to find.
        self._on_frame, self._on_close = _ignore_frame, _ignore_close
        on_close(reason)
