"""Numbers out of samples. Times are in seconds here and in milliseconds (``_ms``) in results."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that ``percent`` of all are not above (nearest rank).

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("a percentile of nothing")
    rank = math.ceil(len(values) * percent / 100)
    return sorted(values)[max(rank, 1) - 1]


def median(values: Sequence[float]) -> float:
    """The middle, as ``statistics.median``."""
    return statistics.median(values)


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over rounds of what was measured in the same round; noise hits both alike."""
    return median([a / b for a, b in zip(ours, theirs, strict=False)])


def ms(seconds: float) -> float:
    """Milliseconds, to a microsecond."""
    return round(seconds * 1000, 3)


def timed(act: Callable[[], object]) -> float:
    """How many seconds ``act`` takes."""
    started = time.perf_counter()
    act()
    return time.perf_counter() - started
