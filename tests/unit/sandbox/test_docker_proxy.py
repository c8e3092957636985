"""What goes through to an engine: what the docker backend asks, and nothing that gives more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from code_executor.model import MIB
from code_executor.sandbox.docker_owner import HOME_LABEL
from code_executor.sandbox.docker_proxy import Proxy, Request, refusal, shipped
from code_executor.sandbox.docker_spec import APPARMOR, container

IMAGES = ("code-executor/python:latest",)
ID = "0123456789ab"


def asked() -> dict[str, Any]:
    return container(
        IMAGES[0],
        ["/opt/ahead/init"],
        shipped(APPARMOR),
        memory_bytes=64 * MIB,
        processes=64,
        labels={HOME_LABEL: "home"},
        ahead=None,
    )


def create(body: dict[str, Any]) -> str | None:
    encoded = json.dumps(body).encode()
    return refusal(Request("POST", "/v1.41/containers/create", encoded), IMAGES)


def _request(line: str) -> Request:
    method, target = line.split(" ")
    return Request(method, target)


OURS = quote(json.dumps({"label": [f"{HOME_LABEL}=x"]}))
THEIRS = quote(json.dumps({"label": ["other=x"]}))


@pytest.mark.parametrize(
    "request_line",
    [
        "GET /version",
        "GET /v1.41/info",
        "GET /v1.41/images/code-executor/python:latest/json",
        f"GET /v1.41/containers/json?all=1&filters={OURS}",
        f"POST /v1.41/containers/{ID}/start",
        f"POST /v1.41/containers/{ID}/attach?stream=1",
        f"DELETE /v1.41/containers/{ID}?force=True",
    ],
)
def test_what_the_backend_asks_goes_through(request_line: str) -> None:
    assert refusal(_request(request_line), IMAGES) is None


@pytest.mark.parametrize(
    "request_line",
    [
        "GET /v1.41/containers/json",
        f"GET /v1.41/containers/json?filters={THEIRS}",
        f"GET /v1.41/containers/json?filters={OURS}&filters={THEIRS}",
        f"POST /v1.41/containers/{ID}/exec",
        f"PUT /v1.41/containers/{ID}/archive",
        f"GET /v1.41/containers/{ID}/archive?path=/",
        "POST /v1.41/containers/../build",
        "GET /v1.41/images/../containers/json",
        "POST /v1.41/images/create?fromImage=x",
        "POST /v1.41/build",
        "POST /v1.41/volumes/create",
        "POST /v1.41/plugins/pull",
        "POST /v1.41/swarm/init",
        "GET /v1.41/events",
    ],
)
def test_everything_else_is_refused(request_line: str) -> None:
    assert refusal(_request(request_line), IMAGES) is not None


def test_a_container_as_the_backend_makes_it_goes_through() -> None:
    assert create(asked()) is None


def _host(**options: Any) -> Callable[[dict[str, Any]], None]:
    return lambda body: body["HostConfig"].update(options)


@pytest.mark.parametrize(
    "spoil",
    [
        _host(Privileged=True),
        _host(privileged=True),
        _host(Binds=["/:/host"]),
        _host(Mounts=[{"Type": "bind", "Source": "/", "Target": "/host"}]),
        _host(NetworkMode="host"),
        _host(PidMode="host"),
        _host(CapDrop=[]),
        _host(CapAdd=["SYS_ADMIN"]),
        _host(ReadonlyRootfs=False),
        _host(SecurityOpt=["no-new-privileges", "seccomp=unconfined"]),
        _host(SecurityOpt=["no-new-privileges", 'seccomp={"defaultAction":"SCMP_ACT_ALLOW"}']),
        _host(SecurityOpt=[*shipped(None).options(), "apparmor=unconfined"]),
        _host(Tmpfs={"/work": "", "/tmp": ""}),
        _host(Tmpfs={"/etc": "rw"}),
        _host(Memory=0, MemorySwap=0),
        _host(MemorySwap=-1),
        _host(PidsLimit=-1),
        _host(MaskedPaths=[]),
        _host(Sysctls={}),
        lambda body: body.update(User="0"),
        lambda body: body.update(Image="debian"),
        lambda body: body.update(Labels={}),
        lambda body: body.update(hostconfig={"Privileged": True}),
        lambda body: body.update(NetworkingConfig={}),
        lambda body: body.pop("HostConfig"),
    ],
)
def test_a_container_that_is_held_less_is_refused(spoil: Callable[[dict[str, Any]], None]) -> None:
    body = asked()
    spoil(body)
    assert create(body) is not None


def test_only_memory_and_processes_are_changed() -> None:
    target = f"/v1.41/containers/{ID}/update"
    assert refusal(Request("POST", target, b'{"Memory": 1, "PidsLimit": 2}'), IMAGES) is None
    assert refusal(Request("POST", target, b'{"Devices": []}'), IMAGES) is not None


async def _exchange(tmp_path: Path, sent: bytes) -> tuple[bytes, list[bytes]]:
    """What a client hears from the proxy, and what reaches the engine behind it."""
    reached: list[bytes] = []

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.append(await reader.readuntil(b"\r\n\r\n"))
        told = b'{"Config": {"Labels": {}}}'
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(told)}\r\n\r\n".encode()
        writer.write(head + told)
        await writer.drain()
        writer.close()

    behind, front = str(tmp_path / "engine"), str(tmp_path / "front")
    proxy = Proxy(behind, IMAGES)
    async with (
        await asyncio.start_unix_server(engine, behind),
        await asyncio.start_unix_server(proxy.serve, front),
    ):
        reader, writer = await asyncio.open_unix_connection(front)
        writer.write(sent)
        heard = await reader.read()
        writer.close()
        await writer.wait_closed()
    return heard, reached


async def test_an_answer_comes_back_and_headers_do_not_go_on(tmp_path: Path) -> None:
    heard, reached = await _exchange(tmp_path, b"GET /info HTTP/1.1\r\nX-Own: 1\r\n\r\n")
    assert heard.startswith(b"HTTP/1.1 200")
    assert len(reached) == 1
    assert b"X-Own" not in reached[0]


async def test_a_second_request_on_a_connection_is_not_heard(tmp_path: Path) -> None:
    sent = b"GET /info HTTP/1.1\r\n\r\nPOST /build HTTP/1.1\r\n\r\n"
    _, reached = await _exchange(tmp_path, sent)
    assert len(reached) == 1


@pytest.mark.parametrize(
    "head",
    [
        b"Transfer-Encoding: chunked",
        b"Content-Length: 1\r\nContent-Length: 2",
        b"Content-Length: 9999999",
        b"Content-Length: x",
    ],
)
async def test_a_doubtful_length_is_refused(tmp_path: Path, head: bytes) -> None:
    target = f"POST /containers/{ID}/start HTTP/1.1\r\n".encode()
    heard, reached = await _exchange(tmp_path, target + head + b"\r\n\r\n")
    assert heard.startswith(b"HTTP/1.1 403")
    assert reached == []


async def test_a_foreign_container_is_not_touched(tmp_path: Path) -> None:
    sent = f"DELETE /containers/{ID} HTTP/1.1\r\n\r\n".encode()
    heard, reached = await _exchange(tmp_path, sent)
    assert heard.startswith(b"HTTP/1.1 403")
    assert [line.split(b" ")[0] for line in reached] == [b"GET"]
