"""``code-executor serve``: the server and its life.

Theory of operation
-------------------
The main thread runs one event loop. The socket is bound first, so that a port that is taken is
said at once; then everything is started; only then does the server listen. The first SIGTERM or
SIGINT begins the end: new runs are refused (503), the present ones finish or are ended when
``SHUTDOWN_GRACE_S`` is over, their answers are written, connections are closed, then the
sandboxes and the records. A second signal ends the waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import resource
import signal
import socket
from collections.abc import Iterator

import typer
import uvicorn
import uvloop

from code_executor.api import uvicorn_config
from code_executor.api.server import MAX_CONNECTIONS
from code_executor.compose import Application, build
from code_executor.config import BadSettings, Settings
from code_executor.observe import configure_logging, get_logger

BACKLOG = 2048
MAX_DESCRIPTORS = 65_536
SERVICE_DESCRIPTORS = 500
SANDBOX_DESCRIPTORS = 10  # its channel, its first process, the files of its control group
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
MMAP_FROM, TRIM_FROM = 8 << 20, 16 << 20
ANSWERS_GRACE_S = 5
"""For the answers that are being written when the last run has ended."""

_log = get_logger("serve")


class Server(uvicorn.Server):
    """uvicorn's server without its signal handlers (ours drain the service first).

    ``listening`` is set when clients can connect.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(settings: Settings) -> None:
    """Serve until a signal ends it.

    Raises:
        BadSettings: the address cannot be used, or the default key would be public.
        HostUnfit: this host lacks something.
        SandboxUnavailable: no program can be run.
    """
    settings.refuse_exposed_default_key()
    keep_freed_memory()
    configure_logging(settings.log_level)
    for name in settings.unheeded():
        _log.warning("setting not honoured by this backend", setting=name)
    wanted = SERVICE_DESCRIPTORS + SANDBOX_DESCRIPTORS * settings.warm_pool_max
    descriptors = raise_descriptor_limit(wanted + MAX_CONNECTIONS)
    if descriptors < wanted:
        fix = f"ulimit -n {wanted}, LimitNOFILE={wanted}, or a smaller WARM_POOL_MAX"
        _log.warning("few open files allowed", allowed=descriptors, wanted=wanted, fix=fix)
    with bind(settings.host, settings.port) as bound:
        port = int(bound.getsockname()[1])
        settings = settings.model_copy(update={"port": port})
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings, bound, connections_allowed(descriptors, wanted)))


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed, up to ``TRIM_FROM`` bytes, for the next such need.

    Otherwise each file, binary and long output of a run is put into pages that the kernel has just
    cleared, and at its end gives them back: 3 ms for the megabyte of a Go program. Whether it did
    depended on the sizes that had been freed before. False where the library knows no such thing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, MMAP_FROM) and mallopt(M_TRIM_THRESHOLD, TRIM_FROM))


def connections_allowed(descriptors: int, wanted: int) -> int:
    """What a full pool, which has ``wanted`` of the ``descriptors``, leaves; in need, a quarter."""
    return min(MAX_CONNECTIONS, max(descriptors - wanted, descriptors // 4))


def raise_descriptor_limit(wanted: int) -> int:
    """How many files this process may open from now on: what it is allowed, in reason."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(wanted, MAX_DESCRIPTORS)
    soft = most if hard == resource.RLIM_INFINITY else min(hard, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet.

    Raises:
        BadSettings: the address is taken or not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as exc:
        raise BadSettings(f"HOST {host!r} is no address to listen on: {exc}") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as exc:
        bound.close()
        raise BadSettings(f"Cannot listen on {host}, port {port}: {exc.strerror}") from None
    return bound


async def _serve(settings: Settings, bound: socket.socket, max_connections: int) -> None:
    application = build(settings)
    stopping = _signals()
    starting = asyncio.create_task(application.start())
    interrupted = asyncio.create_task(stopping.wait())
    await asyncio.wait({starting, interrupted}, return_when=asyncio.FIRST_COMPLETED)
    try:
        if not starting.done():
            starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
            await _listen(application, settings, bound, stopping, max_connections)
    finally:
        interrupted.cancel()
        await application.close()


def _signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    return stopping


async def _listen(
    application: Application,
    settings: Settings,
    bound: socket.socket,
    stopping: asyncio.Event,
    max_connections: int,
) -> None:
    server = Server(
        uvicorn_config(
            application.app,
            host=settings.host,
            port=settings.port,
            shutdown_grace_s=ANSWERS_GRACE_S,
            header_timeout_s=settings.header_timeout_s,
            write_timeout_s=settings.write_timeout_s,
            max_connections=max_connections,
        )
    )
    gc.collect()
    gc.freeze()  # what the start made stays: no later collection looks through it again
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    await server.listening.wait()
    typer.echo(f"Code Executor is ready at {settings.base_url()} (docs at /docs)")
    _log.info("serving", url=settings.base_url(), backend=application.backend.name)
    await stopping.wait()
    _log.info("draining", active=application.service.active)
    await _drain(application, stopping)
    server.should_exit = True
    await serving
    _log.info("stopped")


async def _drain(application: Application, stopping: asyncio.Event) -> None:
    """Wait for the runs; another signal ends them at once."""
    stopping.clear()
    draining = asyncio.create_task(application.drain())
    again = asyncio.create_task(stopping.wait())
    await asyncio.wait({draining, again}, return_when=asyncio.FIRST_COMPLETED)
    again.cancel()
    if not draining.done():
        await application.service.drain(0)
    await draining
