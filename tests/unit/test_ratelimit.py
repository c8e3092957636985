from hypothesis import given
from hypothesis import strategies as st

from code_executor.model import Principal
from code_executor.ratelimit import Bucket, Decision, RateLimiter, refill, spend

PRINCIPAL = Principal("acme", rps=2, burst=3, key_id="k")


def test_a_full_bucket_lets_a_burst_through_and_then_refuses() -> None:
    limiter = RateLimiter()
    decisions = [limiter.check(PRINCIPAL, cost=1, now=10.0) for _ in range(4)]
    assert [decision.allowed for decision in decisions] == [True, True, True, False]
    assert [decision.remaining for decision in decisions] == [2, 1, 0, 0]
    assert decisions[-1].retry_after_s == 0.5
    assert decisions[-1].reset_s == 1.5


def test_tokens_come_back_at_the_rate() -> None:
    limiter = RateLimiter()
    for _ in range(3):
        limiter.check(PRINCIPAL, cost=1, now=0.0)
    assert not limiter.check(PRINCIPAL, cost=1, now=0.4).allowed
    assert limiter.check(PRINCIPAL, cost=1, now=0.5).allowed
    assert not limiter.check(PRINCIPAL, cost=1, now=0.9).allowed


def test_looking_costs_nothing() -> None:
    limiter = RateLimiter()
    assert all(limiter.check(PRINCIPAL, cost=0, now=0.0).remaining == 3 for _ in range(9))


def test_keys_of_one_tenant_have_buckets_of_their_own() -> None:
    limiter = RateLimiter()
    for _ in range(3):
        limiter.check(PRINCIPAL, cost=1, now=0.0)
    other = Principal("acme", rps=2, burst=3, key_id="other")
    assert limiter.check(other, cost=1, now=0.0).allowed


def test_headers_are_whole_seconds_rounded_up() -> None:
    refused = Decision(allowed=False, limit=3, remaining=0, reset_s=1.2, retry_after_s=0.01)
    assert refused.headers() == [
        ("RateLimit-Limit", "3"),
        ("RateLimit-Remaining", "0"),
        ("RateLimit-Reset", "2"),
        ("Retry-After", "1"),
    ]
    allowed = Decision(allowed=True, limit=3, remaining=3, reset_s=0.0, retry_after_s=0.0)
    assert "Retry-After" not in dict(allowed.headers())


def test_a_clock_that_goes_back_adds_nothing() -> None:
    assert refill(Bucket(1.0, 100.0), rps=5, burst=10, now=50.0) == Bucket(1.0, 100.0)


@given(
    rps=st.floats(0.1, 1000),
    burst=st.integers(1, 100),
    steps=st.lists(st.floats(0, 2), max_size=60),
)
def test_never_more_than_the_burst_and_the_rate(rps: float, burst: int, steps: list[float]) -> None:
    bucket, now, allowed = Bucket(float(burst), 0.0), 0.0, 0
    for step in steps:
        now += step
        bucket = refill(bucket, rps=rps, burst=burst, now=now)
        bucket, decision = spend(bucket, rps=rps, burst=burst, cost=1)
        allowed += decision.allowed
        assert 0 <= decision.remaining <= burst
    assert allowed <= burst + rps * now + 1e-6
