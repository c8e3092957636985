"""Any body at all: an answer of the contract, never a 5xx."""

import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from code_executor.api.schemas import ErrorObject, RunObject
from code_executor.wire import RunBody

FIELDS = [*RunBody.model_fields, "timeout_ms", "path", "content", "id", "encoding"]
TEXT = st.text(max_size=12) | st.sampled_from(["python", "base64", "../x", "a/b", "\0", "\u2028"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(FIELDS) | TEXT, inner, max_size=5)
    ),
    max_leaves=20,
)
BODIES = st.fixed_dictionaries(
    {"language": st.just("python"), "code": TEXT},
    optional={
        "args": st.lists(TEXT) | JSON,
        "env": st.dictionaries(TEXT, TEXT) | JSON,
        "files": st.lists(st.dictionaries(st.sampled_from(FIELDS), TEXT)) | JSON,
        "sources": st.lists(st.fixed_dictionaries({"path": TEXT, "content": TEXT})) | JSON,
        "limits": st.dictionaries(st.sampled_from(["timeout_ms", "cpu_ms"]), st.integers()) | JSON,
        "metadata": st.dictionaries(TEXT, TEXT) | JSON,
        "stream": JSON,
    },
)
BOUNDED = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


async def post(app: FastAPI, content: bytes, kind: str = "application/json") -> httpx.Response:
    transport = httpx.ASGITransport(app)  # raises what the application lets through
    headers = {"Authorization": "Bearer tok-a", "Content-Type": kind}
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        return await client.post("/v1/runs", content=content, headers=headers)


def check(answer: httpx.Response) -> None:
    if answer.status_code == 200:
        RunObject.model_validate(answer.json())
        return
    assert answer.status_code in (400, 404, 413, 415)
    assert ErrorObject.model_validate(answer.json()).error.request_id


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


@BOUNDED
@given(body=BODIES)
async def test_any_request(app: FastAPI, body: dict[str, Any]) -> None:
    check(await post(app, dumped(body)))


@BOUNDED
@given(body=JSON)
async def test_any_json(app: FastAPI, body: Any) -> None:
    check(await post(app, dumped(body)))


@BOUNDED
@given(body=st.binary(max_size=300))
async def test_any_bytes(app: FastAPI, body: bytes) -> None:
    check(await post(app, body))


@BOUNDED
@given(body=st.binary(max_size=300), head=st.sampled_from([b"", b"--x\r\n", b"--x"]))
async def test_any_form(app: FastAPI, body: bytes, head: bytes) -> None:
    transport = httpx.ASGITransport(app)
    headers = {
        "Authorization": "Bearer tok-a",
        "Content-Type": "multipart/form-data; boundary=x",
    }
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        answer = await client.post("/v1/files", content=head + body, headers=headers)
    assert answer.status_code in (400, 413)
    ErrorObject.model_validate(answer.json())


@pytest.mark.parametrize("code", ["\ud800", "a\udfffb"])
async def test_lone_surrogates(app: FastAPI, code: str) -> None:
    check(await post(app, dumped({"language": "python", "code": code})))
