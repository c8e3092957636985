"""What spares the event loop turns: one watched descriptor for many, one look for many ends.

Theory of operation. Each descriptor that an event loop watches costs it a handle and some system
calls to begin and to end with, and each timer a turn of its own, in which everything is cold. There
is a descriptor and an end to each run. :class:`Readers` is an epoll set of its own, which the loop
watches as one descriptor; whatever is ready is read in one turn. :class:`Leaving` has the sandboxes
that were killed: when another comes, or is made, those before it are looked after, and only if
nobody comes does a timer do it.

Both belong to the thread of their event loop.
"""

from __future__ import annotations

import asyncio
import select
from collections import deque
from collections.abc import Callable

USUAL_END_S = 0.004  # in which the kernel ends nearly every sandbox
IDLE_LOOK_S = 0.01
BATCH = 64


class Readers:
    """Callbacks for readable descriptors, as an event loop has them."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._set = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._loop.add_reader(self._set.fileno(), self._ready)

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` whenever ``fd`` can be read."""
        self._set.register(fd, select.EPOLLIN)
        self._callbacks[fd] = callback

    def remove_reader(self, fd: int) -> None:
        """Before ``fd`` is closed. Nothing if all are closed already."""
        if self._callbacks.pop(fd, None) is not None:
            self._set.unregister(fd)

    def _ready(self) -> None:
        for fd, _ in self._set.poll(0, BATCH):
            callback = self._callbacks.get(fd)
            if callback is not None:  # one before it may have removed it
                callback()

    def close(self) -> None:
        """Watch nothing any more. Idempotent."""
        if not self._set.closed:
            self._loop.remove_reader(self._set.fileno())
            self._set.close()
            self._callbacks.clear()


class Leaving:
    """What is to be looked after a moment later, in the order in which it came."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._due: deque[tuple[float, Callable[[], None]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, look: Callable[[], None]) -> None:
        """Call ``look`` once, soon but not at once."""
        self.look()
        self._due.append((self._loop.time() + USUAL_END_S, look))
        if self._timer is None:
            self._timer = self._loop.call_later(IDLE_LOOK_S, self._idle)

    def look(self) -> None:
        """Somebody is at work anyway: look after those whose time has come."""
        now = self._loop.time()
        while self._due and self._due[0][0] <= now:
            self._due.popleft()[1]()

    def _idle(self) -> None:
        self.look()
        self._timer = self._loop.call_later(IDLE_LOOK_S, self._idle) if self._due else None
