"""Frames survive any cut of the stream, and nothing else passes for one."""

from __future__ import annotations

import re
import struct
from collections.abc import Generator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from code_executor.sandbox import frames
from code_executor.sandbox.frames import Decoder, Kind, ProtocolError

HEADER_FILE = Path(frames.__file__).parent / "init" / "proto.h"

sent_by_init = st.lists(
    st.tuples(st.sampled_from(sorted(frames.FROM_INIT)), st.binary(max_size=200)), max_size=12
)


@given(sent_by_init, st.data())
def test_any_split_of_the_stream_gives_the_same_frames(
    sent: list[tuple[Kind, bytes]], data: st.DataObject
) -> None:
    stream = b"".join(frames.frame(kind, payload) for kind, payload in sent)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=20).map(sorted))
    decoder = Decoder()
    got = [
        frame
        for start, end in pairwise([0, *cuts, len(stream)])
        for frame in decoder.feed(stream[start:end])
    ]
    assert got == sent


@given(st.binary(max_size=64))
def test_arbitrary_bytes_are_frames_or_a_protocol_error(noise: bytes) -> None:
    decoder = Decoder()
    try:
        got = list(decoder.feed(noise))
    except ProtocolError:
        return
    stream = b"".join(frames.frame(kind, payload) for kind, payload in got)
    assert noise.startswith(stream)


@pytest.mark.parametrize("kind", sorted(frames.FROM_HOST))
def test_what_only_the_host_sends_is_refused_from_init(kind: Kind) -> None:
    with pytest.raises(ProtocolError):
        list(Decoder().feed(frames.frame(kind, b"x")))


@pytest.mark.parametrize("size", [frames.PAYLOAD_OUT_MAX + 1, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_a_length_beyond_the_limit_is_refused_before_its_payload_comes(size: int) -> None:
    with pytest.raises(ProtocolError):
        list(Decoder().feed(frames.HEADER.pack(Kind.STDOUT, size)))


def test_a_payload_of_the_greatest_length_passes() -> None:
    payload = b"x" * frames.PAYLOAD_OUT_MAX
    assert list(Decoder().feed(frames.frame(Kind.STDOUT, payload))) == [(Kind.STDOUT, payload)]


def test_frames_before_a_broken_one_are_delivered() -> None:
    reader = Decoder().feed(frames.frame(Kind.READY) + b"\0\0\0\0\0")
    assert next(reader) == (Kind.READY, b"")
    with pytest.raises(ProtocolError):
        next(reader)


def test_a_decoder_can_be_left_in_the_middle_without_seeing_a_frame_twice() -> None:
    decoder = Decoder()
    two = frames.frame(Kind.READY) + frames.frame(Kind.BEGAN)
    reader = decoder.feed(two)
    assert next(reader) == (Kind.READY, b"")
    assert isinstance(reader, Generator)
    reader.close()
    assert list(decoder.feed(b"")) == [(Kind.BEGAN, b"")]


@given(st.binary(max_size=100))
def test_ended_is_exactly_its_five_numbers(payload: bytes) -> None:
    if len(payload) != frames.ENDED.size:
        with pytest.raises(ProtocolError):
            frames.decode_ended(payload)
    else:
        ended = frames.decode_ended(payload)
        assert frames.ENDED.pack(
            ended.wait_status, ended.user_us, ended.system_us, ended.maxrss_kb, ended.wall_us
        ) == payload  # fmt: skip


@given(st.sampled_from("flpsd"), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
def test_an_entry_is_kind_links_size_and_a_path_of_raw_bytes(
    kind: str, links: int, size: int
) -> None:
    path = b"a/\xff\x00b"
    entry = frames.decode_entry(frames.ENTRY.pack(ord(kind), links, size) + path)
    assert entry == frames.Entry(kind, links, size, path)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"f",
        frames.ENTRY.pack(ord("f"), 1, 1),  # no path
        frames.ENTRY.pack(ord("f"), 1, 1) + b"x" * 1025,
        frames.ENTRY.pack(ord("x"), 1, 1) + b"path",
        frames.ENTRY.pack(0, 1, 1) + b"path",
    ],
)
def test_a_hostile_entry_is_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        frames.decode_entry(payload)


def test_a_number_needs_its_four_bytes() -> None:
    assert frames.decode_u32(b"\x01\x02\x00\x00rest") == 0x201
    with pytest.raises(ProtocolError):
        frames.decode_u32(b"\x01\x02\x00")


@given(st.integers(0, 3 * frames.CHUNK // 2))
def test_chunks_are_the_content_in_order_and_none_is_too_large(size: int) -> None:
    content = bytes(size)
    payloads = [piece[frames.HEADER.size :] for piece in frames.chunks(Kind.DATA, content)]
    assert b"".join(payloads) == content
    assert all(0 < len(payload) <= frames.PAYLOAD_IN_MAX for payload in payloads)


def test_a_staged_file_is_its_path_then_its_bytes_and_an_empty_one_is_only_a_path() -> None:
    assert b"".join(frames.staged("a/b", b"xy")) == b"F\3\0\0\0a/bD\2\0\0\0xy"
    assert b"".join(frames.staged("a/b", b"")) == b"F\3\0\0\0a/b"


def test_a_program_frame_is_two_flags_and_two_lists() -> None:
    got = frames.program(warm=True, listing=False, argv=["a", ""], env=["N=ä"])
    argv = b"\2\0\0\0" + b"\1\0\0\0a" + b"\0\0\0\0"
    env = b"\1\0\0\0" + b"\4\0\0\0" + "N=ä".encode()
    assert got == frames.frame(Kind.PROGRAM, b"\1\0" + argv + env)


def test_a_program_too_large_for_a_frame_is_refused_here_and_not_by_init() -> None:
    with pytest.raises(ProtocolError):
        frames.program(warm=False, listing=True, argv=["x" * frames.PAYLOAD_IN_MAX], env=[])


def test_the_letters_and_limits_are_those_of_the_c_header() -> None:
    text = HEADER_FILE.read_text()
    letters = dict(re.findall(r"FRAME_(\w+) = '(.)'", text))
    assert letters == {kind.name: chr(kind) for kind in Kind}
    assert struct.calcsize("<BI") == int(re.findall(r"HEADER_SIZE = (\d+)", text)[0])
    assert "PAYLOAD_IN_MAX = 4 * 1024 * 1024" in text
    assert "PAYLOAD_OUT_MAX = 64 * 1024" in text
