"""Who is calling: bearer tokens, kept as SHA-256 digests only.

A token is looked up by its digest, which says nothing about the token, and the digest found is
then compared in constant time. No name that Python or JSON knows (``constructor``,
``__class__`` …) has a meaning here: a token is bytes to hash.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from code_executor.errors import Unauthenticated
from code_executor.model import Principal

DEFAULT_RPS = 5.0
DEFAULT_BURST = 10
DEVELOPMENT_TOKEN = "dev_123"  # noqa: S105 - public by design; refused off loopback
DEVELOPMENT_KEYS = f"{DEVELOPMENT_TOKEN}:dev"

MAX_TOKEN_CHARS = 512
_TOKEN = re.compile(r"[\x21-\x7e]+")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MISSING = "No API key. Send the header `Authorization: Bearer TOKEN`."
_UNKNOWN = "The API key is not valid."


class BadKeys(ValueError):
    """The text of ``API_KEYS`` cannot be read; the message never holds a token."""


@dataclass(frozen=True, slots=True)
class Key:
    """One API key: the digest of its token, and who it stands for."""

    digest: bytes
    principal: Principal


class KeyRing:
    """The known keys. Immutable; safe to share."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = {key.digest: key for key in keys}

    def __repr__(self) -> str:
        return f"KeyRing({len(self._keys)} keys)"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``token:label:rps:burst,…`` (rps and burst optional).

        Raises:
            BadKeys: names the entry by its position and says what is wrong with it.
        """
        keys = parse_keys(text)
        if len({key.digest for key in keys}) != len(keys):
            raise BadKeys("API_KEYS holds the same token twice.")
        return cls(keys)

    def authenticate(self, authorization: Sequence[str]) -> Principal:
        """Find who the values of the request's ``Authorization`` headers stand for.

        Raises:
            Unauthenticated: none, more than one, malformed, or unknown.
        """
        token = _bearer(authorization)
        digest = _digest(token)
        key = self._keys.get(digest)
        if key is None or not hmac.compare_digest(key.digest, digest):
            raise Unauthenticated(_UNKNOWN)
        return key.principal

    def knows(self, token: str) -> bool:
        """Whether ``token`` is one of the keys."""
        return _digest(token) in self._keys


def parse_keys(text: str) -> list[Key]:
    """Every entry of ``API_KEYS``, in order; empty entries (a trailing comma) are skipped.

    Raises:
        BadKeys: an entry is malformed, or there is none.
    """
    entries = [entry.strip() for entry in text.split(",")]
    keys = [_parse_entry(entry, at) for at, entry in enumerate(entries, 1) if entry]
    if not keys:
        raise BadKeys("API_KEYS names no key; the form is token:label:rps:burst,…")
    return keys


def _parse_entry(entry: str, position: int) -> Key:
    token, *rest = entry.split(":")
    if not rest or len(rest) > 3:
        raise BadKeys(f"API_KEYS, entry {position}: the form is token:label:rps:burst.")
    if not _TOKEN.fullmatch(token) or len(token) > MAX_TOKEN_CHARS:
        raise BadKeys(f"API_KEYS, entry {position}: the token must be printable ASCII.")
    if not _LABEL.fullmatch(rest[0]):
        raise BadKeys(
            f"API_KEYS, entry {position}: the label must be 1-64 letters, digits, '.', '_' or '-'."
        )
    digest = _digest(token)
    rps = _rate(rest[1], position) if len(rest) > 1 else DEFAULT_RPS
    burst = _burst(rest[2], position) if len(rest) > 2 else DEFAULT_BURST
    return Key(digest, Principal(rest[0], rps, burst, key_id=digest.hex()[:12]))


def _rate(text: str, position: int) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate <= 1e6:
        raise BadKeys(f"API_KEYS, entry {position}: rps must be a number above 0.")
    return rate


def _burst(text: str, position: int) -> int:
    if not re.fullmatch(r"[0-9]{1,7}", text) or int(text) < 1:
        raise BadKeys(f"API_KEYS, entry {position}: burst must be an integer of 1 or more.")
    return int(text)


def _bearer(authorization: Sequence[str]) -> str:
    if not authorization:
        raise Unauthenticated(_MISSING)
    if len(authorization) > 1:
        raise Unauthenticated("More than one Authorization header.")
    scheme, _, token = authorization[0].partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated(_MISSING)
    token = token.strip(" ")
    if not _TOKEN.fullmatch(token) or len(token) > MAX_TOKEN_CHARS:
        raise Unauthenticated(_UNKNOWN)
    return token


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
