"""A run that has just begun goes before what is prepared for later.

Theory of operation. The pool has a sandbox replaced as soon as one is taken. With an OCI runtime or
an engine that is a tenth of a second of processor time, and starting the runtime keeps the event
loop for some milliseconds: several times what a program needs that a waiting interpreter runs. So
such a backend's sandboxes say when they run (:meth:`Lead.run`), and it waits for the first moments
of a run, and for its answer to be on the way, before it prepares another (:meth:`Lead.over`). It
waits for no longer than those moments, however many runs begin meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

FIRST_S = 0.025
"""How long a run goes before others: most programs have ended by then."""
ANSWER_S = 0.005
"""What its answer takes."""
LOOK_S = 0.002


class Lead:
    """The runs of one backend that others wait for. Belongs to one event loop."""

    def __init__(self) -> None:
        self._until: dict[object, float] = {}

    @contextmanager
    def run(self) -> Iterator[None]:
        """While a program runs."""
        now, run = asyncio.get_running_loop().time, object()
        self._until = {key: until for key, until in self._until.items() if until > now()}
        first = self._until[run] = now() + FIRST_S
        try:
            yield
        finally:
            self._until[run] = min(first, now()) + ANSWER_S

    async def over(self) -> None:
        """Return when no run is in its first moments, after ``FIRST_S`` at the latest."""
        now = asyncio.get_running_loop().time
        end = now() + FIRST_S
        while now() < min(end, max(self._until.values(), default=0)):  # noqa: ASYNC110 — no event tells a time
            await asyncio.sleep(LOOK_S)
