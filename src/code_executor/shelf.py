"""One flavour's prepared sandboxes, and how many of them there should be.

Theory of operation
-------------------
Pure arithmetic over what the pool reports; time comes in as ticks (:meth:`Shelf.settle`). Two
memories of what was asked make the target, the larger counts:

*Usual* is a moving average of how many were out at once. It is what steady callers need.

*Stock* is what the last burst needed. While takers come faster than a shelf is filled again, the
*deficit* grows: one more for each taker, one less for each sandbox put on the shelf, nothing when
the shelf has all it should. Its highest value is the stock with which all those takers would have
found one. A taker who found none counts twice: had he not waited, he would have come again sooner.
An interpreter that takes 35 ms of CPU to start so has a stock of some dozens after the first second
of runs back to back. Callers who saturate the machine let any stock grow to its cap; what is
forked, and made on demand in little time, therefore has a small one (``compose.py``). A stock is
kept while something uses at least half of it, then for ``HOLD_TICKS`` more, then it shrinks by a
quarter a tick.

What a preparation costs is the shortest that it has taken of late: one that yielded to runs says
nothing of the cost. It decides who gives way when there is not room for all (``pool.py``).
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from dataclasses import dataclass, field

from code_executor.ports import Haste, Sandbox

WEIGHT = 0.2
"""Of the newest observation in the moving average of demand."""

HOLD_TICKS = 24
"""How long a stock waits for the next burst: two minutes of the pool's usual ticks."""

SHRINK = 0.75
"""What is left of a stock after each tick past these."""

DEARER_S = 0.005
"""A flavour is dearer than another if it takes so much longer to prepare."""

BEHIND = 4
"""From which deficit on a second preparation beside the keeper's is worth it."""

QUICK_S = 0.01
"""What is prepared in less time waits for others more than it works."""

FORGET = 1.05
"""By how much the shortest time of a preparation grows with each longer one."""


@dataclass(frozen=True, slots=True)
class Size:
    """How many prepared sandboxes of a flavour to keep: at least, and at most."""

    floor: int = 1
    cap: int = 4


@dataclass(slots=True)
class Making:
    """A preparation under way for a shelf; a taker who finds the shelf empty may claim it."""

    task: asyncio.Task[Sandbox]
    haste: Haste
    by_keeper: bool
    claimed: bool = False


@dataclass(slots=True)
class Shelf:
    """The prepared sandboxes of one flavour, oldest first."""

    flavour: str
    size: Size
    ready: deque[Sandbox] = field(default_factory=deque)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    making: list[Making] = field(default_factory=list)
    out: int = 0
    awaited: int = 0  # takers who wait for one
    expected: int = 0  # takers whose turn it is not yet
    bytes_each: int = 0
    cost_s: float = 0.0
    demand: float = 0.0
    peak: int = 0
    deficit: int = 0
    worst: int = 0  # deficit since the last tick
    stock: float = 0.0
    unused: int = 0  # ticks since half of the stock was used

    def held(self) -> int:
        """Its part of the budget: what it has or will have, at least its floor."""
        return max(self.coming(), self.size.floor)

    def coming(self) -> int:
        """How many are ready, or being prepared for whoever comes."""
        count = len(self.ready)
        for each in self.making:
            count += not each.claimed
        return count

    def lacks(self) -> bool:
        """Whether more takers are expected than will find one."""
        return self.coming() < min(self.expected, self.size.cap)

    def is_behind(self) -> bool:
        """Whether takers empty it faster than one at a time is prepared, of what is quick."""
        return (
            self.deficit >= BEHIND
            and len(self.ready) <= 1
            and self.cost_s < QUICK_S
            and not self.expected  # for those more are prepared anyway
        )

    def taken(self) -> None:
        """A taker is here: count him, and wake the keeper."""
        self.out += 1
        self.peak = max(self.peak, self.out)
        self.demand += WEIGHT * (self.out - self.demand)
        self._short()
        self.wake.set()

    def missed(self) -> None:
        """The taker found nothing."""
        self._short()

    def _short(self) -> None:
        self.deficit = min(self.deficit + 1, self.size.cap)
        self.worst = max(self.worst, self.deficit)
        self.stock = max(self.stock, self.worst)

    def put(self, sandbox: Sandbox) -> None:
        """A prepared one."""
        self.ready.append(sandbox)
        self.deficit = max(self.deficit - 1, 0)

    def prepared(self, sandbox: Sandbox, seconds: float) -> None:
        """One was prepared, for the shelf or for a taker."""
        self.bytes_each = sandbox.memory_bytes()
        self.cost_s = min(self.cost_s * FORGET, seconds) if self.cost_s else seconds

    def full(self) -> None:
        """It has all it should or may: the next takers begin a new burst."""
        self.deficit = 0

    def settle(self) -> None:
        """A tick has passed: what was out at most in it counts once, and a stock ages."""
        self.demand += WEIGHT * (self.peak - self.demand)
        self.peak = self.out
        self.unused = 0 if 2 * self.worst >= self.stock else self.unused + 1
        if self.unused > HOLD_TICKS:
            self.stock *= SHRINK
        self.worst = self.deficit

    def target(self) -> int:
        """How many should be ready: as many as are usually out at once, or a burst took of late."""
        usual = self.demand if self.demand > WEIGHT else 0
        # A stock of one is none: that one is usual.
        wanted = max(usual, self.stock if self.stock > 1 else 0)
        return min(self.size.cap, max(self.size.floor, math.ceil(wanted)))

    def spare(self) -> int:
        """How many it could give away."""
        return max(len(self.ready) - self.size.floor, 0)

    def dearer_than(self, other: Shelf) -> bool:
        """Whether a sandbox of this flavour takes clearly longer to prepare."""
        return self.cost_s > other.cost_s + DEARER_S
