"""Init in somebody else's container, as the program's own user and without any capability."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.conftest import runtime_dir

from code_executor.errors import SandboxUnavailable
from code_executor.languages import Language, resolve
from code_executor.languages import load as load_languages
from code_executor.sandbox.build import binaries
from code_executor.sandbox.conformance.bench import plan
from code_executor.sandbox.contained import ahead_files, init_command
from code_executor.sandbox.launcher import environment
from code_executor.sandbox.oci_bundle import Box, RuntimeKind, config, write_root
from code_executor.sandbox.oci_runtime import Place, Runtime
from code_executor.sandbox.root import root_operations
from code_executor.sandbox.session import Session

RUNC = shutil.which("runc", path="/usr/sbin:/usr/bin")
pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(RUNC is None, reason="runc is not installed"),
]
STATUS = """
for line in open("/proc/self/status"):
    if line.startswith(("Cap", "Uid", "NoNew", "Seccomp:")): print(*line.split())
for path in ("/proc/1/fd/3", "/proc/1/mem", "/proc/1/environ"):
    try: print(open(path))
    except OSError as error: print(type(error).__name__)
"""


def python() -> Language:
    """Python, with the interpreter that a sandbox finds."""
    found = resolve(load_languages(), lambda _: True)
    return next(language for language in found if language.id == "python")


def shared_identity(content: Any, capabilities: list[str]) -> Any:
    """The bundle of a container without a user namespace, run as the program's user."""
    linux = {key: value for key, value in content["linux"].items() if "Mappings" not in key}
    linux["namespaces"] = [each for each in linux["namespaces"] if each["type"] != "user"]
    mounts = [  # an engine hides nobody's processes
        mount | {"options": [o for o in mount["options"] if not o.startswith("hidepid")]}
        for mount in content["mounts"]
    ]
    sets = dict.fromkeys(("bounding", "effective", "permitted"), capabilities)
    process = content["process"] | {"user": {"uid": 1000, "gid": 1000}, "capabilities": sets}
    return {**content, "mounts": mounts, "linux": linux, "process": process}


@asynccontextmanager
async def container(capabilities: list[str]) -> AsyncIterator[Session]:
    """Init in a container of runc, with those capabilities."""
    place = Place.make("none", RUNC or "")
    name = f"code-executor-test-{secrets.token_hex(6)}"
    runtime = Runtime(RuntimeKind.RUNC, RUNC or "", place.state)
    mounts = {"opt/python": runtime_dir().absolute() / "python"}
    operations = root_operations(mounts, ahead_files(binaries()))
    command = init_command(python(), python().flavours[0])
    box = Box(RuntimeKind.RUNC, place.root, operations, command, 64, (1, 2), f"/{name}")
    ours, theirs = socket.socketpair()
    session = Session(ours)
    try:
        write_root(place.root, operations, b"")
        bundle = place.bundle(name, shared_identity(config(box), capabilities))
        await runtime.run(name, bundle, theirs, ())
        theirs.close()
        yield session
    finally:
        session.close()
        theirs.close()
        await runtime.delete(name)
        place.close()


async def test_a_program_has_no_more_than_init_and_cannot_open_what_init_has() -> None:
    async with container([]) as session, asyncio.timeout(30):
        await session.ready()
        planned = plan("python", STATUS)
        env = environment(dict(planned.env))
        await session.execute([], env, warm=True, before=session.stage(planned))
        said = session.stdout.output().data.decode().splitlines()
    assert said[0] == "Uid: 1000 1000 1000 1000"
    assert [line.split()[1] for line in said if line.startswith("Cap")] == ["0" * 16] * 5
    assert "NoNewPrivs: 1" in said
    assert said[-3:] == ["PermissionError"] * 3


async def test_an_init_that_would_leave_a_capability_to_the_program_refuses() -> None:
    async with container(["CAP_KILL"]) as session, asyncio.timeout(30):
        with pytest.raises(SandboxUnavailable) as caught:
            await session.ready()
    assert caught.value.step == "keep few capabilities"
