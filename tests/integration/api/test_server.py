"""A real server on a free port: the bounds below HTTP, and clients of other makers."""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import openai
import pytest
import uvicorn
from fastapi import FastAPI

from code_executor.api import uvicorn_config
from code_executor.api.server import MAX_HEADER_BYTES
from code_executor.model import MIB

MAX_CONNECTIONS = 20
SERVER_S = 10.0
"""How long a test waits for the server to do something."""


@asynccontextmanager
async def served(app: FastAPI, header_timeout_s: float = 0.4) -> AsyncIterator[int]:
    config = uvicorn_config(
        app,
        host="127.0.0.1",
        port=0,
        header_timeout_s=header_timeout_s,
        write_timeout_s=0.4,
        max_connections=MAX_CONNECTIONS,
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await asyncio.wait_for(task, SERVER_S)


@pytest.fixture
async def port(app: FastAPI) -> AsyncIterator[int]:
    async with served(app) as number:
        yield number


async def talk(port: int, sent: bytes) -> bytes:
    """Send bytes and read until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    try:
        async with asyncio.timeout(SERVER_S):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def test_openai_s_own_client_keeps_files(port: int) -> None:
    url = f"http://127.0.0.1:{port}/v1"
    async with openai.AsyncOpenAI(api_key="tok-a", base_url=url, max_retries=0) as client:
        made = await client.files.create(file=("a.jsonl", b"{}\n"), purpose="user_data")
        assert (made.object, made.filename, made.bytes) == ("file", "a.jsonl", 3)
        listed = [file.id async for file in client.files.list()]
        assert listed == [made.id]
        assert (await client.files.retrieve(made.id)).created_at == made.created_at
        assert (await client.files.content(made.id)).content == b"{}\n"
        deleted = await client.files.delete(made.id)
        assert (deleted.id, deleted.deleted) == (made.id, True)
        with pytest.raises(openai.NotFoundError) as missing:
            await client.files.retrieve(made.id)
        assert missing.value.code == "not_found"
        assert [model async for model in client.models.list()] == []


async def test_openai_s_own_client_pages(port: int) -> None:
    url = f"http://127.0.0.1:{port}/v1"
    async with openai.AsyncOpenAI(api_key="tok-a", base_url=url, max_retries=0) as client:
        made = {
            (await client.files.create(file=(str(n), b""), purpose="user_data")).id
            for n in range(5)
        }
        assert {file.id async for file in client.files.list(limit=2)} == made


async def test_a_request_over_a_socket(port: int) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        answer = await client.post(
            "/v1/runs",
            json={"language": "python", "code": "x"},
            headers={"Authorization": "Bearer tok-a"},
        )
    assert answer.json()["stdout"] == "ok\n"
    assert "server" not in answer.headers


async def test_a_refusal_can_be_read_by_who_sends_on(port: int) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        unknown = await client.post("/v1/runs", content=b" " * 8 * MIB)
        too_large = await client.post(
            "/v1/runs",
            content=b" " * 8 * MIB,
            headers={"Authorization": "Bearer tok-a", "Content-Type": "application/json"},
        )
    assert (unknown.status_code, too_large.status_code) == (401, 413)


@pytest.mark.parametrize(
    "sent", [b"", b"GET", b"GET /v1/health HTTP/1.1\r\nHost: x\r\nX-Slow: "], ids=range(3)
)
async def test_headers_that_do_not_come_end_the_connection(port: int, sent: bytes) -> None:
    begun = asyncio.get_running_loop().time()
    assert await talk(port, sent) == b""
    assert 0.2 < asyncio.get_running_loop().time() - begun < 3


async def test_so_do_the_headers_of_a_second_request(port: int) -> None:
    first = b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = await talk(port, first + b"GET /v1/health HT")
    assert answer.count(b"HTTP/1.1 200") == 1


async def test_a_connection_that_waits_between_requests_stays(port: int) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        for _ in range(2):
            assert (await client.get("/v1/health")).status_code == 200
            await asyncio.sleep(0.6)


async def test_headers_are_bounded(port: int) -> None:
    head = b"GET /v1/health HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 2 * MAX_HEADER_BYTES
    begun = asyncio.get_running_loop().time()
    assert b"200" not in await talk(port, head)
    assert asyncio.get_running_loop().time() - begun < 0.4


async def test_a_body_of_any_size_class_is_not_taken_for_headers(port: int) -> None:
    body = b'{"language":"python","code":"' + b"x" * 2 * MAX_HEADER_BYTES + b'"}'
    head = b"POST /v1/runs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer tok-a\r\nConnection: close"
    head += b"\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert b"HTTP/1.1 200" in await talk(port, head + body)


async def test_who_does_not_read_is_dropped(port: int) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        client.headers["Authorization"] = "Bearer tok-a"
        answer = await client.post("/v1/files", files={"file": ("a", b"x" * MIB)})
        path = f"/v1/files/{answer.json()['id']}/content"
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer tok-a\r\n\r\n".encode()
    writer.write(request * 20)  # 20 MiB of answers, more than the kernel's buffers take
    await asyncio.sleep(1.5)
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await reader.readexactly(20 * MIB)
    writer.close()


async def test_what_is_not_http_is_refused(port: int) -> None:
    assert (await talk(port, b"\x16\x03\x01garbage\r\n\r\n")).startswith(b"HTTP/1.1 400")


async def test_an_upgrade_is_only_a_request(port: int) -> None:
    head = b"GET /v1/health HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head + b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_a_signed_query_is_in_no_log_line(port: int, log: io.StringIO) -> None:
    await talk(
        port,
        b"GET /v1/files/f?payload=s3cret&sig=s3cret HTTP/1.1\r\nHost: x\r\n"
        b"Connection: close\r\n\r\n",
    )
    assert "/v1/files/f" in log.getvalue()
    assert "s3cret" not in log.getvalue()


@pytest.mark.parametrize("said", [b"", b"GET /v1/hea", b"GET /v1/runs HTTP/1.1\r\nHost: x\r\n\r\n"])
async def test_a_crowd_of_idle_connections_shuts_nobody_out(app: FastAPI, said: bytes) -> None:
    health = b"GET /v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    async with served(app, header_timeout_s=SERVER_S) as port:
        crowd = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MAX_CONNECTIONS)]
        for reader, writer in crowd:
            writer.write(said)
            if said.endswith(b"\r\n\r\n"):
                await reader.readuntil(b"\r\n\r\n")
        assert b"HTTP/1.1 200" in await talk(port, health)
        first, last = crowd[0][0], crowd[-1][0]
        async with asyncio.timeout(SERVER_S):
            await first.read()  # the one that waited longest had to go
        assert not last.at_eof()
        for _, writer in crowd:
            writer.close()
