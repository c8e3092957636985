"""What holds for every request: keys, rates, headers, bounds, the shape of errors, the log."""

import asyncio
import io
import json
import re
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from code_executor.api.schemas import ErrorObject
from code_executor.model import MIB
from code_executor.observe import Metrics

HELLO = {"language": "python", "code": "print('s3cret-code')"}
PROTECTED = [
    ("POST", "/v1/runs"),
    ("GET", "/v1/runs"),
    ("GET", "/v1/runs/run_1"),
    ("POST", "/v1/runs/run_1/cancel"),
    ("DELETE", "/v1/runs/run_1"),
    ("POST", "/v1/files"),
    ("GET", "/v1/files"),
    ("GET", "/v1/files/file_1"),
    ("GET", "/v1/files/file_1/content"),
    ("DELETE", "/v1/files/file_1"),
    ("GET", "/v1/languages"),
    ("GET", "/v1/ready"),
    ("GET", "/v1/models"),
    ("GET", "/v1/nothing-here"),
    ("GET", "/v1"),
]
OPEN = ["/v1/health", "/", "/docs", "/docs/docs.js", "/docs/docs.css", "/openapi.json",
        "/metrics", "/models"]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), PROTECTED)
async def test_everything_under_v1_needs_a_key(
    nobody: httpx.AsyncClient, method: str, path: str
) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer constructor"}):
        answer = await nobody.request(method, path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "invalid_api_key"


def test_the_list_of_protected_paths_is_whole(app: FastAPI) -> None:
    given = {(method, re.sub(r"(run|file)_1", "{}", path)) for method, path in PROTECTED}
    routed = {
        (method, re.sub(r"\{\w+\}", "{}", str(getattr(route, "path", ""))))
        for route in app.routes
        for method in getattr(route, "methods", ())
    }
    under_v1 = {pair for pair in routed if pair[1].startswith("/v1")}
    assert under_v1 - given == {("GET", "/v1/health")}
    assert {path for _, path in routed - under_v1} == set(OPEN) - {"/v1/health"}


@pytest.mark.parametrize("path", OPEN)
async def test_the_rest_is_open(nobody: httpx.AsyncClient, path: str) -> None:
    assert (await nobody.get(path)).status_code == 200


async def test_the_key_is_checked_before_the_body_is_read(app: FastAPI) -> None:
    read = 0

    async def receive() -> dict[str, object]:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": b"{}", "more_body": False}

    sent: list[dict[str, object]] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/v1/runs", "query_string": b"",
        "headers": [(b"content-type", b"application/json")], "http_version": "1.1",
        "scheme": "http", "root_path": "", "server": None, "client": None,
    }  # fmt: skip
    await app(scope, receive, send)  # type: ignore[arg-type]  # plain dicts, as ASGI has them
    assert sent[0]["status"] == 401
    assert read == 0


async def test_every_answer_carries_the_same_headers(
    acme: httpx.AsyncClient, nobody: httpx.AsyncClient
) -> None:
    answers = [
        await acme.post("/v1/runs", json=HELLO),
        await acme.post("/v1/runs", json={}),
        await acme.get("/v1/nothing"),
        await nobody.get("/v1/runs"),
        await nobody.get("/nothing"),
        await nobody.put("/v1/health"),
        await nobody.get("/docs"),
    ]
    for answer in answers:
        assert re.fullmatch(r"req_[0-9a-f]{24}", answer.headers["x-request-id"])
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in answer.headers["content-security-policy"]


async def test_every_error_has_the_one_shape(
    acme: httpx.AsyncClient, nobody: httpx.AsyncClient
) -> None:
    answers = {
        400: await acme.post("/v1/runs", json={}),
        401: await nobody.get("/v1/runs"),
        403: await nobody.get("/v1/files/file_1?payload=x&sig=y"),
        404: await acme.get("/v1/nothing"),
        405: await acme.put("/v1/runs"),
        413: await acme.post("/v1/runs", content=b"x" * 3 * MIB),
        415: await acme.post("/v1/runs", content=b"{}"),
    }
    for status, answer in answers.items():
        assert answer.status_code == status
        error = ErrorObject.model_validate(answer.json()).error
        assert error.request_id == answer.headers["x-request-id"]
        assert error.message
    assert answers[405].headers["allow"]


@pytest.mark.parametrize("path", ["/v1/runs/", "//v1/runs", "/V1/runs", "/v1/runs/a/b/c"])
async def test_only_the_exact_path_is_routed(acme: httpx.AsyncClient, path: str) -> None:
    assert (await acme.post(f"http://service{path}", json=HELLO)).status_code == 404


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-1.2_3", True), ("a" * 64, True), ("a" * 65, False), ("a b", False), ("é", False),
     ("", False)],
)  # fmt: skip
async def test_a_sane_request_id_is_kept(nobody: httpx.AsyncClient, given: str, kept: bool) -> None:
    answer = await nobody.get("/v1/health", headers={b"X-Request-Id": given.encode()})
    assert (answer.headers["x-request-id"] == given) is kept


async def test_what_nobody_foresaw_is_a_500_that_says_nothing(
    acme: httpx.AsyncClient, service: object, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("database at /secret/place is gone")

    monkeypatch.setattr(service, "get_run", fail)
    answer = await acme.get("/v1/runs/run_1")
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("api_error", "internal")
    assert "secret" not in answer.text
    (line,) = [line for line in map(json.loads, log.getvalue().splitlines()) if "exception" in line]
    assert line["request_id"] == error["request_id"]
    assert "/secret/place" in line["exception"]


async def test_an_answer_shows_the_key_s_bucket(slow: httpx.AsyncClient) -> None:
    seen = [await slow.post("/v1/runs", json=HELLO) for _ in range(2)]
    assert [answer.headers["ratelimit-remaining"] for answer in seen] == ["1", "0"]
    refused = await slow.post("/v1/runs", json=HELLO)
    assert refused.status_code == 429
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert refused.json()["error"]["message"].endswith("0.001 a second, and 2 at once.")
    assert int(refused.headers["retry-after"]) > 100
    assert refused.headers["ratelimit-limit"] == "2"
    reading = await slow.get("/v1/runs")
    assert reading.status_code == 200
    assert reading.headers["ratelimit-remaining"] == "0"
    assert "retry-after" not in reading.headers
    uploading = await slow.post("/v1/files", files={"file": ("a", b"")})
    assert uploading.status_code == 429


async def test_one_key_s_flood_is_not_another_s(
    slow: httpx.AsyncClient, acme: httpx.AsyncClient
) -> None:
    for _ in range(3):
        await slow.post("/v1/runs", json=HELLO)
    assert (await acme.post("/v1/runs", json=HELLO)).status_code == 200


async def pieces(count: int, size: int, pause: float = 0.0) -> AsyncIterator[bytes]:
    for _ in range(count):
        await asyncio.sleep(pause)
        yield b" " * size


JSON = {"Content-Type": "application/json"}


async def test_a_body_is_counted_whatever_its_length_says(acme: httpx.AsyncClient) -> None:
    chunked = await acme.post("/v1/runs", content=pieces(9, MIB // 4), headers=JSON)
    assert chunked.status_code == 413
    lying = {**JSON, "Content-Length": "2"}
    assert (await acme.post("/v1/runs", content=b" " * 3 * MIB, headers=lying)).status_code == 413
    small = await acme.post("/v1/runs/run_1/cancel", content=b" " * MIB)
    assert small.status_code == 413


async def test_a_body_that_does_not_come_is_408(acme: httpx.AsyncClient) -> None:
    answer = await acme.post("/v1/runs", content=pieces(9, 1, pause=0.2), headers=JSON)
    assert answer.status_code == 408
    assert answer.json()["error"]["code"] == "request_timeout"


async def test_bodies_in_memory_are_bounded_over_all_requests(acme: httpx.AsyncClient) -> None:
    async def half_sent() -> AsyncIterator[bytes]:
        yield b" " * MIB
        await asyncio.sleep(0.1)
        yield b" "

    posts = [acme.post("/v1/runs", content=half_sent(), headers=JSON) for _ in range(6)]
    statuses = [answer.status_code for answer in await asyncio.gather(*posts)]
    assert sorted(set(statuses)) == [400, 503]
    assert (await acme.post("/v1/runs", json=HELLO)).status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
async def test_a_compressed_body_is_not_taken(acme: httpx.AsyncClient, encoding: str) -> None:
    headers = {**JSON, "Content-Encoding": encoding}
    assert (await acme.post("/v1/runs", content=b"x", headers=headers)).status_code == 415


async def test_browsers_may_call_from_anywhere_without_credentials(
    nobody: httpx.AsyncClient,
) -> None:
    headers = {
        "Origin": "https://chat.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, idempotency-key",
    }
    preflight = await nobody.options("/v1/runs", headers=headers)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "*"
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in preflight.headers
    refused = await nobody.post("/v1/runs", headers={"Origin": "https://chat.example"})
    assert refused.headers["access-control-allow-origin"] == "*"
    assert "RateLimit-Remaining" in refused.headers["access-control-expose-headers"]


async def test_the_log_is_one_honest_line_a_request_without_secrets(
    acme: httpx.AsyncClient, nobody: httpx.AsyncClient, log: io.StringIO
) -> None:
    await acme.post("/v1/runs", json={**HELLO, "env": {"K": "s3cret-env"}, "stdin": "s3cret-in"})
    await acme.get("/v1/runs/x%0A{fake}?payload=s3cret-query&sig=s3cret-sig")
    await nobody.get("/v1/files/f?payload=s3cret-query&sig=s3cret-sig")
    await nobody.get("/v1/runs", headers={"Authorization": "Bearer s3cret-token"})
    text = log.getvalue()
    ours = [line for line in map(json.loads, text.splitlines()) if line["component"] == "api"]
    requests = [line for line in ours if line["event"] == "http.request"]
    assert [line["status"] for line in requests] == [200, 404, 403, 401]
    assert (requests[0]["tenant"], requests[0]["route"]) == ("acme", "/v1/runs")
    mine = [line for line in text.splitlines() if json.loads(line)["component"] != "httpx"]
    assert "s3cret" not in "".join(mine)
    assert "tok-a" not in text


async def test_requests_are_counted_by_route_and_not_by_path(
    acme: httpx.AsyncClient, metrics: Metrics
) -> None:
    await acme.get("/v1/runs/run_secret")
    await acme.get("/v1/unknown/secret")
    await acme.request("BREW", "/v1/runs")
    text = (await acme.get("/metrics")).text
    assert 'method="GET",route="/v1/runs/{run_id}",status="404"} 1.0' in text
    assert 'route="unmatched",status="404"' in text
    assert 'method="OTHER"' in text
    assert "secret" not in text
    assert metrics.text()
