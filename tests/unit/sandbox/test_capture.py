"""What is kept of a stream does not depend on how it was cut, and says what is missing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from code_executor.model import MIB
from code_executor.sandbox.capture import Capture, flood_limit


def line(omitted: int) -> bytes:
    return b"\n[... %d bytes left out ...]\n" % omitted


def captured(pieces: list[bytes], limit: int) -> Capture:
    capture = Capture(limit)
    for piece in pieces:
        capture.feed(piece)
    return capture


@given(st.lists(st.binary(max_size=40), max_size=30), st.integers(0, 60))
def test_head_line_and_tail_are_cut_from_the_whole_stream(pieces: list[bytes], limit: int) -> None:
    whole = b"".join(pieces)
    output = captured(pieces, limit).output()
    assert output.total_bytes == len(whole)
    assert output.truncated is (len(whole) > limit)
    head, tail = limit - limit // 2, limit // 2
    if len(whole) <= limit:
        assert output.data == whole
    else:
        last = whole[len(whole) - tail :]
        assert output.data == whole[:head] + line(len(whole) - limit) + last


@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        (0, line(10)),
        (1, b"0" + line(9)),
        (2, b"0" + line(8) + b"9"),
        (3, b"01" + line(7) + b"9"),
        (9, b"01234" + line(1) + b"6789"),
        (10, b"0123456789"),
        (11, b"0123456789"),
    ],
)
def test_small_and_odd_limits(limit: int, kept: bytes) -> None:
    assert captured([b"0123456789"], limit).output().data == kept


def test_nothing_is_nothing_even_where_nothing_is_kept() -> None:
    output = captured([b"", b""], 0).output()
    assert (output.data, output.total_bytes, output.truncated) == (b"", 0, False)


def test_asking_does_not_end_the_capture() -> None:
    capture = captured([b"ab"], 4)
    assert capture.output().data == b"ab"
    capture.feed(b"cdef")
    assert capture.output().data == b"ab" + line(2) + b"ef"


def test_a_flood_is_counted_and_not_kept() -> None:
    capture = Capture(1000)
    for _ in range(400):
        capture.feed(b"x" * 65_536)
    output = capture.output()
    assert output.total_bytes == 400 * 65_536
    assert len(output.data) < 1100


def test_the_flood_limit_is_far_beyond_what_is_kept() -> None:
    assert flood_limit(0) == flood_limit(1000) == 16 * MIB
    assert flood_limit(2 * MIB) == 32 * MIB
