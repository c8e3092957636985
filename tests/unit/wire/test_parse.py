import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from code_executor.errors import InvalidRequest
from code_executor.wire.parse import MAX_KEYS, parse_json


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "line 1"),
        (b"{", "line 1"),
        (b'{"a": 1,}', "column"),
        (b"\xff\xfe", "not UTF-8"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key a is there twice"),
        (b'{"a": {"b": 1, "b": 1}}', "the key b is there twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b"[" * 40_000, "nested"),
        (b'{"a":' * 20_000, "nested"),
        (b"1" * 10_000, "digits"),
        (b"[" * 100_000, "too many values"),
        (b"[" + b"[]," * 50_000 + b"[]]", "too many values"),
        (b"[" + b'{"":0},' * 20_000 + b"0]", "too many values"),
        (b"[" + b"0," * 60_000 + b"0]", "too many values"),
        (b"[" + b'"",' * 60_000 + b'""]', "too many values"),
        (b'"' + b'\\"' * 60_000 + b"," * 60_000, "line 1"),
        (b"{} {}", "line 1"),
        (b"{'a': 1}", "line 1"),
    ],
)
def test_what_is_not_json_is_refused(text: bytes, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as caught:
        parse_json(text)
    assert caught.value.code == "invalid_json"


def test_keys_are_bounded() -> None:
    within = {str(n): n for n in range(MAX_KEYS)}
    assert parse_json(json.dumps(within).encode()) == within
    with pytest.raises(InvalidRequest, match="more than 1000 keys"):
        parse_json(json.dumps({**within, "more": 1}).encode())


def test_what_is_in_a_string_counts_as_one_value() -> None:
    text = '",[{\\"' * 60_000
    assert parse_json(json.dumps([text, text]).encode()) == [text, text]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"code": "\ud800"}, "code"),
        ({"stdin": "a\udfff"}, "stdin"),
        ({"args": ["a", "\udc80"]}, "args[1]"),
        ({"files": [{"path": "\ud800", "content": ""}]}, "files[0].path"),
        ({"env": {"A": "\ud800"}}, "env.A"),
        ({"env": {"\ud800": ""}}, "env.�"),
        ({"\ud800": 1}, "�"),
    ],
)
def test_lone_surrogates_are_refused_at_their_place(changes: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest, match="lone surrogate") as caught:
        parse_json(json.dumps(changes).encode())
    assert caught.value.param == param
    (caught.value.message + param).encode()


def test_a_lone_surrogate_may_be_the_whole_body() -> None:
    with pytest.raises(InvalidRequest, match="the body holds") as caught:
        parse_json(b'"\\ud800"')
    assert caught.value.param is None


def test_a_pair_of_surrogates_is_a_character() -> None:
    assert parse_json(b'["\\ud83d\\ude00"]') == ["\N{GRINNING FACE}"]


@given(st.binary(max_size=200))
def test_any_bytes_are_json_or_refused(body: bytes) -> None:
    try:
        parse_json(body)
    except InvalidRequest as error:
        error.message.encode()
