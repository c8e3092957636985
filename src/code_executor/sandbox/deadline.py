"""A time limit on what others owe, which does not count the time that this process stood still.

Theory of operation. A service may be paused with all its helpers (``docker pause``, a suspended
machine, SIGSTOP) or starved for a while. Afterwards each ordinary timer is due at once, before
anybody has had the time to answer, and whoever kills for silence kills what is well. So a
:class:`Deadline` runs in slices, and a slice that ends late by more than its own length is
repeated.

It belongs to the thread of its event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

SLICES = 10


class Deadline:
    """Calls ``late`` once, after ``seconds`` of this process's time, unless cancelled."""

    def __init__(self, seconds: float, late: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._slice = seconds / SLICES
        self._left = SLICES
        self._late = late
        self._begin()

    def _begin(self) -> None:
        self._due = self._loop.time() + self._slice
        self._timer = self._loop.call_later(self._slice, self._end)

    def _end(self) -> None:
        if self._loop.time() - self._due <= self._slice:
            self._left -= 1
        if self._left:
            self._begin()
        else:
            self._late()

    def cancel(self) -> None:
        """It is never late any more. Idempotent."""
        self._timer.cancel()
