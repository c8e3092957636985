import base64
import hashlib
import hmac
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from code_executor.errors import Forbidden
from code_executor.signing import BadKey, Link, Signer, key_id, new_key, parse_signing_keys

OLD, NEW = b"o" * 32, b"n" * 32
LINK = Link("/v1/files/file_1", "acme", 1_000)
SIGNER = Signer([NEW, OLD])
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def verify(payload: str, sig: str, signer: Signer = SIGNER, now: float = 999.0) -> Link:
    return signer.verify(payload, sig, method="GET", path="/v1/files/file_1", now=now)


def forge(message: object, key: bytes = NEW) -> tuple[str, str]:
    """A message of the test's own, correctly signed: only what it says can be wrong."""
    text = message if isinstance(message, str) else json.dumps(message, separators=(",", ":"))
    payload = base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()
    mac = hmac.digest(key, b"code-executor signed link v1\0" + payload.encode(), "sha256")
    return payload, f"{key_id(key)}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def message(**changes: object) -> dict[str, object]:
    return {
        "v": 1,
        "typ": "file",
        "method": "GET",
        "path": "/v1/files/file_1",
        "tenant": "acme",
        "exp": 1_000,
    } | changes


def test_what_was_signed_verifies() -> None:
    assert verify(*SIGNER.sign(LINK)) == LINK


def test_the_forged_message_is_what_the_signer_writes() -> None:
    assert forge(message()) == SIGNER.sign(LINK)


def test_the_newest_key_signs_and_all_verify() -> None:
    payload, sig = Signer([OLD]).sign(LINK)
    assert verify(payload, sig) == LINK
    assert SIGNER.sign(LINK)[1].startswith(key_id(NEW))
    with pytest.raises(Forbidden):
        verify(*SIGNER.sign(LINK), signer=Signer([OLD]))


def test_it_expires() -> None:
    payload, sig = SIGNER.sign(LINK)
    assert verify(payload, sig, now=999.9) == LINK
    with pytest.raises(Forbidden):
        verify(payload, sig, now=1_000.0)


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", LINK.path), ("DELETE", LINK.path), ("GET", "/v1/files/file_2"), ("GET", "")],
)
def test_it_is_for_one_request(method: str, path: str) -> None:
    payload, sig = SIGNER.sign(LINK)
    with pytest.raises(Forbidden):
        SIGNER.verify(payload, sig, method=method, path=path, now=0)


@pytest.mark.parametrize(
    "odd",
    [
        message(v=2),
        message(typ="run"),
        message(exp="1000"),
        message(exp=1000.0),
        message(exp=True),
        message(extra=1),
        {"path": LINK.path},
        [1, 2],
        "not json",
        json.dumps(message()),  # the same values, spelt with spaces
        json.dumps(message(), separators=(",", ":")).replace("acme", "\\u0061cme"),
        "[" * 600,
    ],
)
def test_a_signed_message_of_another_shape_is_refused(odd: object) -> None:
    with pytest.raises(Forbidden):
        verify(*forge(odd))


@given(st.data())
def test_any_changed_character_is_refused(data: st.DataObject) -> None:
    payload, sig = SIGNER.sign(LINK)
    whole = f"{payload}~{sig}"
    at = data.draw(st.integers(0, len(whole) - 1))
    char = data.draw(st.sampled_from(ALPHABET + ".~= "))
    changed = whole[:at] + char + whole[at + 1 :]
    parts = changed.split("~")
    if changed == whole or len(parts) != 2:
        return
    with pytest.raises(Forbidden):
        verify(parts[0], parts[1])


@given(payload=st.text(max_size=200), sig=st.text(max_size=80))
def test_garbage_is_refused(payload: str, sig: str) -> None:
    with pytest.raises(Forbidden):
        verify(payload, sig)


def test_every_refusal_is_the_same() -> None:
    payload, sig = SIGNER.sign(LINK)
    attempts = [(payload, ""), ("", sig), (payload, sig[:-1]), forge(message(tenant="b", exp=1))]
    texts = set()
    for attempt in attempts:
        with pytest.raises(Forbidden) as refusal:
            verify(*attempt)
        texts.add((refusal.value.code, refusal.value.message))
    assert len(texts) == 1


def test_another_spelling_of_the_same_code_is_refused() -> None:
    payload, sig = SIGNER.sign(LINK)
    last = ALPHABET.index(sig[-1])
    same_bytes = sig[:-1] + ALPHABET[last ^ 1]  # 43 characters hold 258 bits; two are not used
    assert base64.urlsafe_b64decode(same_bytes[9:] + "=") == base64.urlsafe_b64decode(sig[9:] + "=")
    with pytest.raises(Forbidden):
        verify(payload, same_bytes)


def test_the_tenant_is_signed() -> None:
    payload, sig = SIGNER.sign(LINK)
    other, _ = SIGNER.sign(replace(LINK, tenant="beta"))
    assert other != payload
    with pytest.raises(Forbidden):
        verify(other, sig)


def test_keys_are_read_newest_first_and_must_be_long() -> None:
    assert parse_signing_keys(f" {'a' * 32},{'b' * 40},") == [b"a" * 32, b"b" * 40]
    with pytest.raises(BadKey, match="openssl"):
        parse_signing_keys("a" * 31)
    with pytest.raises(BadKey):
        parse_signing_keys(",")
    with pytest.raises(BadKey):
        Signer([])


def test_a_new_key_can_be_read_back() -> None:
    assert parse_signing_keys(new_key(bytes(range(32)))) == [bytes(range(32)).hex().encode()]
    with pytest.raises(BadKey):
        new_key(b"short")


def test_no_key_is_shown() -> None:
    assert "nnnn" not in repr(SIGNER)
    assert key_id(NEW) != hashlib.sha256(NEW).hexdigest()[:8]
