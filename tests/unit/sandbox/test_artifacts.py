"""Which of what a program left is returned, whatever it is called."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from code_executor.model import DEFAULT_LIMITS
from code_executor.sandbox.artifacts import SKIPPED_MAX, choose, printable
from code_executor.sandbox.frames import Entry

LIMITS = replace(DEFAULT_LIMITS, max_artifact_bytes=100, max_artifact_files=3)

entries = st.lists(
    st.builds(
        Entry,
        kind=st.sampled_from("fffflpsd"),
        links=st.sampled_from([1, 1, 1, 2]),
        size=st.integers(0, 200),
        path=st.binary(min_size=1, max_size=8),
    ),
    max_size=30,
)


def file(path: bytes, size: int = 1, links: int = 1) -> Entry:
    return Entry("f", links, size, path)


@given(entries)
def test_everything_is_either_fetched_or_skipped_with_a_reason(listed: list[Entry]) -> None:
    choice = choose(listed, LIMITS)
    assert len(choice.fetch) + len(choice.skipped) == len(listed)
    assert all(skipped.reason for skipped in choice.skipped)


@given(entries)
def test_what_is_fetched_is_plain_small_and_shown_as_it_is(listed: list[Entry]) -> None:
    choice = choose(listed, LIMITS)
    assert len(choice.fetch) <= LIMITS.max_artifact_files
    for path, name, size in choice.fetch:
        assert Entry("f", 1, size, path) in listed
        assert size <= LIMITS.max_artifact_bytes
        assert name.encode() == path
        assert name == printable(name)


@given(entries)
def test_the_order_of_the_listing_does_not_matter(listed: list[Entry]) -> None:
    names = {entry.path for entry in listed}
    if len(names) == len(listed):
        assert choose(listed, LIMITS) == choose(listed[::-1], LIMITS)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (Entry("l", 1, 5, b"a"), "a symbolic link"),
        (Entry("p", 1, 0, b"a"), "a named pipe"),
        (Entry("s", 1, 0, b"a"), "a socket"),
        (Entry("d", 1, 0, b"a"), "a device"),
        (file(b"a", links=2), "a file with more than one name (hard link)"),
        (file(b"a", links=0), "a file with more than one name (hard link)"),
        (file(b"\xff"), "a name that is not UTF-8"),
        (file(b"\xed\xa0\x80"), "a name that is not UTF-8"),  # a lone surrogate
        (file(b"a\nb"), "a name with control characters"),
        (file(b"a\x00b"), "a name with control characters"),
        (file("\u009b".encode()), "a name with control characters"),
        (file("\u202egnp.exe".encode()), "a name with control characters"),
        (file("a\u2028b".encode()), "a name with control characters"),
        (file(b"..\\..\\a"), "a name with a backslash"),
        (file(b"a", size=101), "larger than max_artifact_bytes (100)"),
    ],
)
def test_reasons(entry: Entry, reason: str) -> None:
    (skipped,) = choose([entry], LIMITS).skipped
    assert skipped.reason == reason
    assert skipped.size == (entry.size if entry.kind == "f" else None)
    assert skipped.name == printable(skipped.name)


def test_the_first_by_name_are_returned() -> None:
    choice = choose([file(name) for name in (b"d", b"b", b"a", b"c")], LIMITS)
    assert [name for _, name, _ in choice.fetch] == ["a", "b", "c"]
    assert [(s.name, s.reason) for s in choice.skipped] == [
        ("d", "more than max_artifact_files (3)")
    ]


def test_what_cannot_be_returned_takes_no_place_of_what_can() -> None:
    listed = [file(b"a", size=999), Entry("l", 1, 1, b"b"), file(b"c"), file(b"d"), file(b"e")]
    assert [name for _, name, _ in choose(listed, LIMITS).fetch] == ["c", "d", "e"]


def test_none_are_returned_when_none_are_wanted() -> None:
    none = replace(LIMITS, max_artifact_files=0)
    assert choose([file(b"a")], none).fetch == ()


def test_names_in_any_script_are_plain() -> None:
    name = "Übersicht – 表 🙂.csv"
    assert choose([file(name.encode())], LIMITS).fetch == ((name.encode(), name, 1),)


def test_a_listing_cut_short_says_so() -> None:
    last = choose([file(b"a")], LIMITS, truncated=True).skipped[-1]
    assert (last.name, last.reason) == (
        "",
        "there are more things under outputs than are listed",
    )


def test_the_list_of_skipped_things_is_bounded() -> None:
    choice = choose([Entry("l", 1, 1, b"%d" % n) for n in range(500)], LIMITS)
    assert len(choice.skipped) == SKIPPED_MAX + 1
    assert choice.skipped[-1].name == ""
