"""The token bucket, pure: time is a parameter, in seconds of a clock that never goes back.

A bucket holds up to ``burst`` tokens and gains ``rps`` of them a second. Creating a run or a
file takes one; everything else only reads the level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from code_executor.model import Principal


@dataclass(frozen=True, slots=True)
class Bucket:
    """The level of one bucket at one moment."""

    tokens: float
    at: float


@dataclass(frozen=True, slots=True)
class Decision:
    """What a bucket said: whether the request may go on, and the numbers for its headers.

    ``limit`` and ``remaining`` are whole tokens; ``reset_s`` is when the bucket is full again,
    ``retry_after_s`` when one token is back (0 when one is there).
    """

    allowed: bool
    limit: int
    remaining: int
    reset_s: float
    retry_after_s: float

    def headers(self) -> list[tuple[str, str]]:
        """``RateLimit-*``, and ``Retry-After`` for a refusal; whole seconds, rounded up."""
        values = [
            ("RateLimit-Limit", str(self.limit)),
            ("RateLimit-Remaining", str(self.remaining)),
            ("RateLimit-Reset", str(math.ceil(self.reset_s))),
        ]
        if not self.allowed:
            values.append(("Retry-After", str(max(1, math.ceil(self.retry_after_s)))))
        return values


def refill(bucket: Bucket, *, rps: float, burst: int, now: float) -> Bucket:
    """The bucket as it is at ``now``; a clock that went back adds nothing."""
    elapsed = max(0.0, now - bucket.at)
    return Bucket(min(float(burst), bucket.tokens + elapsed * rps), max(now, bucket.at))


def spend(bucket: Bucket, *, rps: float, burst: int, cost: int) -> tuple[Bucket, Decision]:
    """Take ``cost`` tokens (0 only looks) out of a refilled bucket, or refuse and take none."""
    allowed = bucket.tokens >= cost
    left = bucket.tokens - cost if allowed else bucket.tokens
    decision = Decision(
        allowed=allowed,
        limit=burst,
        remaining=math.floor(left),
        reset_s=(burst - left) / rps,
        retry_after_s=0.0 if left >= 1 else (1 - left) / rps,
    )
    return Bucket(left, bucket.at), decision


class RateLimiter:
    """One bucket per key. As many buckets as there are keys, so nothing grows.

    Not thread-safe: it is used from one event loop and never awaits.
    """

    def __init__(self) -> None:
        self._buckets: dict[str, Bucket] = {}

    def check(self, principal: Principal, *, cost: int, now: float) -> Decision:
        """Spend ``cost`` tokens of the key's bucket at ``now``."""
        rps, burst = principal.rps, principal.burst
        name = principal.key_id or principal.tenant
        bucket = self._buckets.get(name) or Bucket(float(burst), now)
        bucket = refill(bucket, rps=rps, burst=burst, now=now)
        self._buckets[name], decision = spend(bucket, rps=rps, burst=burst, cost=cost)
        return decision
