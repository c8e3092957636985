import pytest
from starlette.types import Scope

from code_executor.api.middleware import RequestState, is_signed, principal_of, state_of
from code_executor.errors import Unauthenticated


def scope(method: str, path: str, query: bytes) -> Scope:
    return {"type": "http", "method": method, "path": path, "query_string": query}


@pytest.mark.parametrize(
    ("method", "path", "query", "signed"),
    [
        ("GET", "/v1/files/f", b"payload=x&sig=y", True),
        ("GET", "/v1/files/f", b"sig=", True),
        ("GET", "/v1/files/f", b"payload", True),
        ("GET", "/v1/files/f", b"", False),
        ("GET", "/v1/files/f", b"Payload=x", False),
        ("GET", "/v1/files/f", b"a=payload", False),
        ("POST", "/v1/files/f", b"payload=x&sig=y", False),
        ("DELETE", "/v1/files/f", b"payload=x&sig=y", False),
        ("GET", "/v1/files", b"payload=x&sig=y", False),
        ("GET", "/v1/files/", b"payload=x&sig=y", False),
        ("GET", "/v1/files/f/content", b"payload=x&sig=y", False),
        ("GET", "/v1/runs/f", b"payload=x&sig=y", False),
        ("GET", "/v1/files/f\n", b"payload=x&sig=y", True),
        ("GET", "/v1/files/f", b"\xff=\xff&sig=1", True),
    ],
)
def test_only_reading_one_file_may_come_with_a_link(
    method: str, path: str, query: bytes, signed: bool
) -> None:
    assert is_signed(scope(method, path, query)) is signed


def test_a_handler_stays_shut_without_somebody() -> None:
    request = scope("GET", "/v1/runs", b"")
    request["state"] = {"request": RequestState("req_1")}
    assert state_of(request).request_id == "req_1"
    with pytest.raises(Unauthenticated):
        principal_of(request)
