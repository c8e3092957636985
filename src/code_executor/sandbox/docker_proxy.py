"""A door to an engine for the docker backend: what that needs goes through, nothing else does.

    python -m code_executor.sandbox.docker_proxy LISTEN-SOCKET ENGINE-SOCKET [IMAGE…]

Theory of operation. An engine does whatever it is asked, as root: an unfiltered socket in the
service's container would be the host's. This process has the engine's socket and gives the service
one of its own. A request is parsed, judged by :func:`refusal` (method, path, the whole body of a
new container) and written anew from its parts, the body too: the engine's JSON reader joins what is
said twice. Only containers that carry our label are touched, which the engine is asked first. One
request is taken on a connection; what a client sends after it is read only where the engine has
answered 101, as it does for an attached stream. No chunked bodies, no second length.

New containers must have exactly the options that :mod:`.docker_spec` writes, with one of the images
named and the filter and profile that ship; a bind mount is refused, so images need init of their
own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import parse_qs, urlsplit

from code_executor.languages import load
from code_executor.sandbox.docker_owner import HOME_LABEL
from code_executor.sandbox.docker_spec import APPARMOR, Confinement, container, read_profile
from code_executor.sandbox.seccomp import default_path

HEAD_MAX = 16 * 1024
BODY_MAX = 1024 * 1024
ENGINE_TIMEOUT_S = 60.0
_ID = "[0-9a-f]{12,64}"
_VERSION = re.compile(r"^/v[0-9]\.[0-9]{1,3}(?=/)")
FREE = re.compile(r"GET /(version|info|_ping)|HEAD /_ping|GET /images/[\w./:-]+/json")
OURS = re.compile(
    rf"(?:GET /containers/(?P<show>{_ID})/json"
    rf"|POST /containers/(?P<act>{_ID})/(?:start|kill|attach|update)"
    rf"|DELETE /containers/(?P<gone>{_ID}))"
)
CREATE = "POST /containers/create"
LIST = "GET /containers/json"
UPDATABLE = {"Memory", "MemorySwap", "PidsLimit"}
# Options whose value is the service's to choose; every other one must be as docker_spec has it.
CHOSEN = {"Memory", "MemorySwap", "PidsLimit", "ShmSize", "Tmpfs", "SecurityOpt", "KernelMemoryTCP"}
CHOSEN_OUTSIDE = {"Image", "Entrypoint", "Labels", "HostConfig"}
TMPFS = re.compile(
    r"rw,exec,nosuid,nodev,size=\d+m,nr_inodes=\d+,mode=(755|1777),uid=1000,gid=1000"
)


@dataclass(frozen=True, slots=True)
class Request:
    """A request, parsed."""

    method: str
    target: str
    body: bytes = b""

    @property
    def name(self) -> str:
        """Method and path, without the API's version."""
        return f"{self.method} {_VERSION.sub('', urlsplit(self.target).path)}"

    @property
    def attaches(self) -> bool:
        """Whether the connection is to become a stream."""
        return self.name.startswith("POST ") and self.name.endswith("/attach")

    def encode(self) -> bytes:
        """As it goes to the engine."""
        upgrade = "Connection: Upgrade\r\nUpgrade: tcp" if self.attaches else "Connection: close"
        return (
            f"{self.method} {self.target} HTTP/1.1\r\nHost: engine\r\n{upgrade}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(self.body)}\r\n\r\n"
        ).encode() + self.body


class Refused(Exception):
    """A request that does not go through."""


# ── what may be asked ──


def refusal(request: Request, images: Collection[str]) -> str | None:
    """Why a request is refused, apart from whose container it is about; ``None``: it is not."""
    if ".." in request.target:
        return "a path goes straight"
    if FREE.fullmatch(request.name):
        return None
    if request.name == LIST:
        return _refused_list(request)
    if request.name == CREATE:
        return refused_container(_object(request.body), images)
    if OURS.fullmatch(request.name) is None:
        return "the docker backend does not need that"
    if request.name.endswith("/update") and set(_object(request.body)) - UPDATABLE:
        return "only memory and processes may be changed"
    return None


def _refused_list(request: Request) -> str | None:
    filters = parse_qs(urlsplit(request.target).query).get("filters", ["{}"])
    labels = _object(filters[-1].encode()).get("label", [])
    ours = len(filters) == 1 and any(str(each).startswith(f"{HOME_LABEL}=") for each in labels)
    return None if ours else "only the service's own containers may be listed"


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body or b"{}")
    except ValueError:
        raise Refused("the body is not JSON") from None
    if not isinstance(value, dict):
        raise Refused("the body is not an object")
    return value


def refused_container(asked: Mapping[str, Any], images: Collection[str]) -> str | None:
    """Why a container may not be made."""
    image, labels, host = asked.get("Image"), asked.get("Labels"), asked.get("HostConfig")
    if image not in images:
        return f"the image {image} is not one of the runners'"
    if not isinstance(labels, dict) or not isinstance(labels.get(HOME_LABEL), str):
        return "a container needs the service's label"
    if not isinstance(host, dict):
        return "HostConfig is missing"
    model = container("", (), shipped(None), memory_bytes=1, processes=1, labels={}, ahead=None)
    wrong = _differs(asked, model, CHOSEN_OUTSIDE) or _differs(host, model["HostConfig"], CHOSEN)
    return f"{wrong} is not as it must be" if wrong else _refused_choice(host)


@cache
def shipped(apparmor: str | None) -> Confinement:
    """What the service asks for where nothing is set otherwise."""
    profile = read_profile(default_path())
    return Confinement(seccomp=profile, apparmor=apparmor, scratch_mb=1, limits_sockets=True)


def _differs(asked: Mapping[str, Any], model: Mapping[str, Any], chosen: set[str]) -> str | None:
    """The first option that is not the model's."""
    for name in sorted(set(asked) | set(model)):
        if name not in chosen and (name not in model or asked.get(name) != model[name]):
            return name
    return None


def _refused_choice(host: Mapping[str, Any]) -> str | None:
    options, tmpfs = host.get("SecurityOpt"), host.get("Tmpfs")
    if options not in (shipped(None).options(), shipped(APPARMOR).options()):
        return "the filter and the profile that ship are not asked for"
    if not isinstance(tmpfs, dict) or set(tmpfs) != {"/work", "/tmp"}:  # noqa: S108 - names inside
        return "Tmpfs is not as it must be"
    if not all(isinstance(each, str) and TMPFS.fullmatch(each) for each in tmpfs.values()):
        return "Tmpfs is not as it must be"
    limits = (host.get("Memory"), host.get("PidsLimit"))
    bounded = all(type(limit) is int and limit > 0 for limit in limits)
    return None if bounded and host.get("MemorySwap") == limits[0] else "memory is not limited"


# ── passing it on ──


class Proxy:
    """Serves one listening socket in front of one engine."""

    def __init__(self, engine: str, images: Collection[str]) -> None:
        self._engine = engine
        self._images = images

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: one request."""
        try:
            async with asyncio.timeout(ENGINE_TIMEOUT_S):
                request = await _read(reader)
                reason = refusal(request, self._images)
                if reason is None:
                    reason = await self._foreign(request)
            if reason is not None:
                raise Refused(f"{request.name}: {reason}")
            await self._forward(request, reader, writer)
        except Refused as refused:
            sys.stderr.write(f"refused {str(refused)!r}\n")
            writer.write(_answer(403, str(refused)))
        except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError) as error:
            writer.write(_answer(502, f"{type(error).__name__}: {error}"))
        finally:
            with contextlib.suppress(OSError):
                await writer.drain()
            writer.close()

    async def _foreign(self, request: Request) -> str | None:
        """Why the container that a request is about may not be touched."""
        match = OURS.fullmatch(request.name)
        if match is None:
            return None
        name = next(group for group in match.groups() if group)
        reader, writer = await asyncio.open_unix_connection(self._engine)
        try:
            writer.write(Request("GET", f"/containers/{name}/json").encode())
            status, _ = await _head(reader)
            if b" 404 " in status[:13]:
                return None  # the engine will say so
            told = json.loads(_dechunk(await reader.read()))
        finally:
            writer.close()
        return None if HOME_LABEL in (told["Config"].get("Labels") or {}) else "it is not ours"

    async def _forward(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        engine_reader, engine_writer = await asyncio.open_unix_connection(self._engine)
        inward: asyncio.Task[None] | None = None
        try:
            engine_writer.write(request.encode())
            status, head = await _head(engine_reader)
            writer.write(head)
            if request.attaches and b" 101 " in status[:13]:
                inward = asyncio.create_task(_pump(reader, engine_writer))
            await _pump(engine_reader, writer)
        finally:
            if inward is not None:
                inward.cancel()
            engine_writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(256 * 1024):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


async def _head(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The first line of an answer, and its whole head."""
    head = await reader.readuntil(b"\r\n\r\n")
    return head.partition(b"\r\n")[0] + b" ", head


async def _read(reader: asyncio.StreamReader) -> Request:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
    except (asyncio.LimitOverrunError, UnicodeDecodeError):
        raise Refused("the request's head is not acceptable") from None
    first, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
    match = re.fullmatch(r"(GET|HEAD|POST|DELETE) (/[!-~]*) HTTP/1\.1", first)
    pairs = [
        (name.strip().lower(), value.strip())
        for name, _, value in (x.partition(":") for x in lines)
    ]
    headers = dict(pairs)
    if match is None or len(headers) != len(pairs) or "transfer-encoding" in headers:
        raise Refused("the request's head is not acceptable")
    length = headers.get("content-length", "0")
    if not re.fullmatch(r"[0-9]{1,7}", length) or int(length) > BODY_MAX:
        raise Refused("the body is too long")
    body = await reader.readexactly(int(length))
    return Request(match[1], match[2], json.dumps(_object(body)).encode() if body else b"")


def _dechunk(data: bytes) -> bytes:
    """The engine's own answer, which is chunked when it is long."""
    if data[:1] == b"{":
        return data
    out = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        out, data = out + data[:length], data[length + 2 :]
    return out


def _answer(status: int, message: str) -> bytes:
    body = json.dumps({"message": message}).encode()
    return (
        f"HTTP/1.1 {status} Refused\r\nContent-Type: application/json\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


async def serve_forever(listen: str, engine: str, images: Collection[str]) -> None:
    """Until cancelled."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(listen)
    proxy = Proxy(engine, images)
    server = await asyncio.start_unix_server(proxy.serve, listen, limit=HEAD_MAX)
    os.chmod(listen, 0o660)
    async with server:
        await server.serve_forever()


def default_images() -> list[str]:
    """The images that ``make images`` builds."""
    return [f"code-executor/{language.id}:latest" for language in load()]


if __name__ == "__main__":
    asyncio.run(serve_forever(sys.argv[1], sys.argv[2], sys.argv[3:] or default_images()))
