"""Signed links: who holds one may fetch one file until it expires, without a key.

A link has two query parameters. ``payload`` is the base64url of a JSON message (version, kind,
method, path, tenant, expiry). ``sig`` is ``<key id>.<HMAC-SHA-256 over the payload's characters
as they stand>``. Order of work on the way in, and the order is the point:

1. the shape and size of both parameters, by character class alone;
2. the key, by its id; the code of the message, in constant time;
3. only then the payload is decoded, and must be what this module would have written, byte for
   byte (one message, one spelling);
4. what it says is compared with the request: method, path, time.

Whatever fails, the caller learns one thing: :class:`~code_executor.errors.Forbidden`.

Keys are a list: the first signs, all verify, so a key can be replaced without breaking links.
A key's id is derived from it and is not secret.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from code_executor.errors import Forbidden

MIN_KEY_CHARS = 32
_CONTEXT = b"code-executor signed link v1\0"
_PAYLOAD = re.compile(r"[A-Za-z0-9_-]{1,1024}")
_SIGNATURE = re.compile(r"([0-9a-f]{8})\.([A-Za-z0-9_-]{43})")
_REFUSED = "The link is not valid or has expired."


class BadKey(ValueError):
    """A signing key that is too weak to use; the message never holds the key."""


@dataclass(frozen=True, slots=True)
class Link:
    """What a signed link says: fetch ``path`` of ``tenant`` until ``expires_at`` (Unix seconds)."""

    path: str
    tenant: str
    expires_at: int
    method: str = "GET"


class Signer:
    """Signs with the newest key, verifies with all. Immutable; safe to share."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys:
            raise BadKey("At least one signing key is needed.")
        self._keys = {key_id(key): key for key in keys}
        self._newest = key_id(keys[0])

    def __repr__(self) -> str:
        return f"Signer({', '.join(self._keys)})"

    def sign(self, link: Link) -> tuple[str, str]:
        """The link's ``payload`` and ``sig``."""
        payload = _encode(link)
        return payload, f"{self._newest}.{_mac(self._keys[self._newest], payload)}"

    def verify(self, payload: str, sig: str, *, method: str, path: str, now: float) -> Link:
        """What the link says, if we wrote it, for this request, and it has not expired.

        Raises:
            Forbidden: anything else; never says which.
        """
        if not _PAYLOAD.fullmatch(payload) or not self._is_ours(payload, sig):
            raise Forbidden(_REFUSED)
        link = _decode(payload)
        if (link.method, link.path) != (method, path) or now >= link.expires_at:
            raise Forbidden(_REFUSED)
        return link

    def _is_ours(self, payload: str, sig: str) -> bool:
        match = _SIGNATURE.fullmatch(sig)
        key = self._keys.get(match[1]) if match else None
        if match is None or key is None:
            return False
        # The text of the code is compared, not its bytes: base64 has several spellings of one.
        return hmac.compare_digest(_mac(key, payload), match[2])


def parse_signing_keys(text: str) -> list[bytes]:
    """Read a comma list of keys, newest first.

    Raises:
        BadKey: none, or one shorter than 32 characters.
    """
    keys = [entry.strip().encode() for entry in text.split(",") if entry.strip()]
    if not keys:
        raise BadKey("SIGNING_KEY is empty.")
    if any(len(key) < MIN_KEY_CHARS for key in keys):
        raise BadKey(
            f"A key in SIGNING_KEY is shorter than {MIN_KEY_CHARS} characters; "
            "make one with: openssl rand -hex 32"
        )
    return keys


def new_key(random: bytes) -> str:
    """The text of a new key, from 32 random bytes."""
    if len(random) < MIN_KEY_CHARS:
        raise BadKey(f"A key is made of {MIN_KEY_CHARS} random bytes.")
    return random.hex()


def key_id(key: bytes) -> str:
    """Eight hex digits that name ``key`` and do not reveal it."""
    return hashlib.sha256(b"code-executor key id\0" + key).hexdigest()[:8]


def _mac(key: bytes, payload: str) -> str:
    return _base64(hmac.digest(key, _CONTEXT + payload.encode("ascii"), "sha256"))


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _encode(link: Link) -> str:
    message = {
        "v": 1,
        "typ": "file",
        "method": link.method,
        "path": link.path,
        "tenant": link.tenant,
        "exp": link.expires_at,
    }
    return _base64(json.dumps(message, separators=(",", ":")).encode("ascii"))


def _decode(payload: str) -> Link:
    try:
        message = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        link = Link(
            path=message["path"],
            tenant=message["tenant"],
            expires_at=message["exp"],
            method=message["method"],
        )
        same = hmac.compare_digest(_encode(link), payload)
    except (binascii.Error, ValueError, KeyError, TypeError, RecursionError):
        raise Forbidden(_REFUSED) from None
    if not same or type(link.expires_at) is not int:
        raise Forbidden(_REFUSED)
    return link
