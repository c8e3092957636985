"""A shelf's arithmetic: what is usual, what a burst needs, how long a stock is kept."""

from __future__ import annotations

from code_executor.sandbox.fake import FakeBackend, FakeSandbox
from code_executor.shelf import HOLD_TICKS, Shelf, Size


def shelf(floor: int = 2, cap: int = 64) -> Shelf:
    return Shelf("node", Size(floor, cap))


def sandbox(taken: int = 0) -> FakeSandbox:
    backend = FakeBackend()
    backend.sandbox_bytes = taken
    return FakeSandbox(backend, "node")


def burst(made: Shelf, runs: int, *, refilled_every: int) -> None:
    """Runs one after another, in which every so often one was put on the shelf."""
    for run in range(1, runs + 1):
        made.taken()
        made.out -= 1
        if run % refilled_every == 0:
            made.put(sandbox())


def test_it_begins_with_its_floor() -> None:
    assert shelf().target() == 2
    assert shelf(0, 0).target() == 0


def test_a_burst_that_refilling_could_not_keep_up_with_sets_the_stock() -> None:
    made = shelf()
    burst(made, 60, refilled_every=10)
    # Six of sixty were put on the shelf; the sixtieth run had its one put after it.
    assert made.target() == 55


def test_a_burst_that_refilling_kept_up_with_needs_no_stock() -> None:
    made = shelf()
    burst(made, 200, refilled_every=1)
    assert made.target() == 2


def test_a_taker_who_found_none_counts_twice() -> None:
    made = shelf()
    for _ in range(10):
        made.taken()
        made.missed()
        made.out -= 1
    assert made.target() == 20


def test_a_full_shelf_begins_a_new_burst() -> None:
    made = shelf()
    for _ in range(10):
        burst(made, 5, refilled_every=100)
        made.full()
    assert made.target() == 5


def test_the_stock_is_within_the_cap() -> None:
    made = shelf(2, 16)
    burst(made, 500, refilled_every=100)
    assert made.target() == 16
    made.full()
    assert made.target() == 16


def test_a_stock_waits_for_the_next_burst_and_then_shrinks_to_the_floor() -> None:
    made = shelf()
    burst(made, 40, refilled_every=100)
    made.full()
    made.settle()  # the tick of the burst itself
    for _ in range(HOLD_TICKS):
        made.settle()
        assert made.target() == 40
    targets = []
    for _ in range(20):
        made.settle()
        targets.append(made.target())
    assert targets == sorted(targets, reverse=True)
    assert targets[0] == 30
    assert targets[-1] == 2


def test_single_runs_do_not_keep_a_large_stock() -> None:
    made = shelf()
    burst(made, 40, refilled_every=100)
    made.full()
    for _ in range(HOLD_TICKS + 20):
        burst(made, 1, refilled_every=1)
        made.full()
        made.settle()
    assert made.target() == 2


def test_bursts_that_use_half_of_a_stock_keep_it() -> None:
    made = shelf()
    burst(made, 40, refilled_every=100)
    made.full()
    for _ in range(5):
        for _ in range(HOLD_TICKS):
            made.settle()
        burst(made, 20, refilled_every=100)
        made.full()
    assert made.target() == 40


def test_as_many_as_are_usually_out_at_once_are_wanted() -> None:
    made = shelf(1)
    for _ in range(200):
        for _ in range(8):
            made.taken()
            made.put(sandbox())
        made.out -= 8
        made.settle()
    assert made.target() >= 4


def test_the_cost_is_that_of_a_preparation_that_nothing_held_up() -> None:
    made, cheap = shelf(), shelf()
    for seconds in (0.9, 0.035, 1.0, 0.5):
        made.prepared(sandbox(), seconds)
    assert 0.03 < made.cost_s < 0.05
    cheap.prepared(sandbox(), 0.002)
    assert made.dearer_than(cheap)
    assert not cheap.dearer_than(made)
    assert not made.dearer_than(made)


def test_the_cost_follows_a_flavour_that_has_become_dearer() -> None:
    made = shelf()
    made.prepared(sandbox(), 0.002)
    for _ in range(100):
        made.prepared(sandbox(), 0.04)
    assert made.cost_s == 0.04


def test_what_the_newest_took_of_memory_counts_for_all() -> None:
    made = shelf()
    made.prepared(sandbox(10), 0.01)
    made.put(sandbox(10))
    assert (made.held(), made.bytes_each) == (2, 10)  # its floor is reserved


def test_it_is_behind_where_takers_empty_it_faster_than_it_is_refilled() -> None:
    made = shelf(floor=0)
    burst(made, 3, refilled_every=100)
    assert not made.is_behind()
    burst(made, 1, refilled_every=100)
    assert made.is_behind()


def test_it_is_not_behind_while_it_has_some_or_others_are_expected_or_it_is_costly() -> None:
    made = shelf(floor=0)
    burst(made, 10, refilled_every=100)
    made.expected = 1
    assert not made.is_behind()
    made.expected = 0
    made.cost_s = 0.03
    assert not made.is_behind()
    made.cost_s = 0.003
    assert made.is_behind()
    made.ready.extend((sandbox(), sandbox()))
    assert not made.is_behind()
