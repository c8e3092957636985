"""Gate 1: bytes → JSON, strictly."""

from __future__ import annotations

import codecs
import json
import re
from itertools import islice
from typing import Any

from code_executor.errors import InvalidRequest
from code_executor.wire.place import place_of, shown

MAX_KEYS = 1_000
"""Of one object: far more than any has that is accepted, far fewer than make work of a refusal."""

MAX_TOKENS = 50_000
"""Strings, commas and opening brackets in a body: several times what an accepted one can have.
Each may cost a hundred times its size once it is parsed, and time in which nothing else is done."""
UNCOUNTED_BYTES = 64 * 1024
"""A body of this size is parsed in milliseconds, whatever is in it."""

_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{,]', re.DOTALL)
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_json(body: bytes) -> object:
    """Read one JSON text strictly.

    Raises:
        InvalidRequest: not UTF-8, not JSON (with line and column), a key twice, ``NaN`` or
            ``Infinity``, nested too deeply, too many keys or values, or a lone surrogate in a
            string.
    """
    if body.startswith(codecs.BOM_UTF8):
        raise _bad_json("it begins with a byte order mark")
    if len(body) > UNCOUNTED_BYTES:
        _refuse_many_tokens(body)
    try:
        value: object = _DECODER.decode(body.decode("utf-8"))
        if _SURROGATE_ESCAPE.search(body):
            _refuse_surrogates(value, ())
    except UnicodeDecodeError as error:
        raise _bad_json(f"it is not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise _bad_json(f"{error.msg} (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise _bad_json("it is nested too deeply") from None
    except ValueError:
        raise _bad_json("a number has too many digits") from None
    return value


def _refuse_many_tokens(body: bytes) -> None:
    """In one pass without backtracking, and no further than the limit; a string is one token."""
    if any(True for _ in islice(_TOKEN.finditer(body), MAX_TOKENS, None)):
        raise _bad_json("it holds too many values")


def _unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise _bad_json(f"an object has more than {MAX_KEYS} keys")
    result = dict(pairs)
    if len(result) == len(pairs):
        return result
    seen: set[str] = set()
    twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # set.add returns None, which is the point
    raise _bad_json(f"the key {shown(twice)} is there twice")


def _refuse_constant(name: str) -> None:
    raise _bad_json(f"{name} is not JSON")


def _refuse_surrogates(value: object, place: tuple[int | str, ...]) -> None:
    if isinstance(value, str):
        if _SURROGATE.search(value):
            where = place_of(place) or "the body"
            raise InvalidRequest(
                f"{where} holds a lone surrogate, which is not text.", param=place_of(place) or None
            )
    elif isinstance(value, list):
        for at, entry in enumerate(value):
            _refuse_surrogates(entry, (*place, at))
    elif isinstance(value, dict):
        for key, entry in value.items():
            _refuse_surrogates(key, (*place, key))
            _refuse_surrogates(entry, (*place, key))


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_object, parse_constant=_refuse_constant)


def _bad_json(what: str) -> InvalidRequest:
    return InvalidRequest(f"The body cannot be read as JSON: {what}.", code="invalid_json")
