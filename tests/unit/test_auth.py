import hashlib

import pytest

from code_executor.auth import DEFAULT_BURST, DEFAULT_RPS, BadKeys, KeyRing, parse_keys
from code_executor.errors import Unauthenticated

RING = KeyRing.parse("tok-a:acme:2.5:7, tok-b:beta,tok-c:acme:1")


def test_a_token_stands_for_its_label_and_rate() -> None:
    principal = RING.authenticate(["Bearer tok-a"])
    assert (principal.tenant, principal.rps, principal.burst) == ("acme", 2.5, 7)


def test_rate_and_burst_have_defaults() -> None:
    principal = RING.authenticate(["Bearer tok-b"])
    assert (principal.rps, principal.burst) == (DEFAULT_RPS, DEFAULT_BURST)
    assert RING.authenticate(["Bearer tok-c"]).burst == DEFAULT_BURST


def test_two_keys_of_a_tenant_are_told_apart() -> None:
    ids = {RING.authenticate([f"Bearer {token}"]).key_id for token in ("tok-a", "tok-c")}
    assert len(ids) == 2


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_has_no_case(scheme: str) -> None:
    assert RING.authenticate([f"{scheme} tok-b"]).tenant == "beta"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [""],
        ["Bearer"],
        ["Bearer "],
        ["Bearer  "],
        ["tok-a"],
        ["Basic tok-a"],
        ["Bearertok-a"],
        ["Bearer tok-a tok-b"],
        ["Bearer TOK-A"],
        ["Bearer tok-"],
        ["Bearer tok-a\0"],
        ["Bearer tök"],
        ["Bearer \ud800"],
        ["Bearer constructor"],
        ["Bearer __proto__"],
        ["Bearer __class__"],
        ["Bearer None"],
        ["Bearer " + "a" * 100_000],
        ["Bearer tok-a", "Bearer tok-a"],
        ["Bearer " + hashlib.sha256(b"tok-a").hexdigest()],
    ],
)
def test_anything_else_is_nobody(headers: list[str]) -> None:
    with pytest.raises(Unauthenticated):
        RING.authenticate(headers)


def test_no_token_is_kept() -> None:
    assert "tok-a" not in repr(vars(RING)) + repr(RING)
    assert RING.knows("tok-a")
    assert not RING.knows("tok-z")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "names no key"),
        (" , ", "names no key"),
        ("token-only", "entry 1"),
        ("a:b:1:2:3", "entry 1"),
        ("ok:label,:label", "entry 2"),
        ("tok en:label", "printable ASCII"),
        ("a:", "label"),
        ("a:la bel", "label"),
        ("a:b:0", "rps"),
        ("a:b:-1", "rps"),
        ("a:b:nan", "rps"),
        ("a:b:inf", "rps"),
        ("a:b:x", "rps"),
        ("a:b:1:0", "burst"),
        ("a:b:1:1.5", "burst"),
        ("a:b:1:²", "burst"),
        ("a:b,a:c", "twice"),
    ],
)
def test_malformed_keys_are_refused_by_position(text: str, says: str) -> None:
    with pytest.raises(BadKeys, match=says):
        KeyRing.parse(text)


def test_a_refusal_never_shows_the_token() -> None:
    with pytest.raises(BadKeys) as refusal:
        parse_keys("very-secret-token")
    assert "very-secret-token" not in str(refusal.value)
