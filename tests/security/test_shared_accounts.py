"""What the kernel counts per user, or not at all, is no way from one run to another or to the host.

The kernel charges some things (message queues, locked memory, pending signals) to the maker of a
user namespace too, and on cgroup v1 counts no memory that waits in sockets unless told to. gVisor
counts within its own kernel, of which every run has one.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from code_executor.ports import Backend
from code_executor.sandbox.conformance.bench import plan, python
from code_executor.sandbox.oci_runtime import may_lift
from code_executor.sandbox.oci_sandbox import OciSandbox

pytestmark = [pytest.mark.sandbox, pytest.mark.asyncio(loop_scope="session")]

QUEUES = """
import ctypes, os, time
libc = ctypes.CDLL(None)
class Attributes(ctypes.Structure): _fields_ = [("numbers", ctypes.c_long * 8)]
wanted = Attributes((0, 10, 8000, 0, 0, 0, 0, 0))
made = 0
while libc.mq_open(b"/q%d" % made, os.O_CREAT | os.O_RDWR, 0o600, ctypes.byref(wanted)) >= 0:
    made += 1
print(made, flush=True)
time.sleep(1.5)
"""

BUFFERS = """
import socket, time
end = time.monotonic() + 1.5
server = socket.create_server(("127.0.0.1", 0), backlog=100)
kept = []
try:
    while time.monotonic() < end and len(kept) < 800:
        client = socket.create_connection(server.getsockname(), timeout=0.5)
        kept += [client, server.accept()[0]]
        client.setblocking(False)
        try:
            while time.monotonic() < end: client.send(bytes(65536))
        except BlockingIOError: pass
except OSError: pass
tcp = next(line.split() for line in open("/proc/net/sockstat") if line.startswith("TCP:"))
print(int(tcp[tcp.index("mem") + 1]) * 4096 >> 20)
"""

SHIELD = """
import os
adj = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
try: os.write(adj, b"-1")
except PermissionError: print("refused")
"""


def has_queues(backend: Backend) -> bool:
    """Whether a sandbox has an account of its own; where it has none it can make no queue."""
    return backend.name in ("native", "gvisor") or (backend.name == "runc" and may_lift())


async def test_a_run_cannot_use_up_the_message_queues_of_all(each_backend: Backend) -> None:
    hog = asyncio.create_task(python(each_backend, QUEUES))
    await asyncio.sleep(0.7)
    neighbour = await python(each_backend, QUEUES)
    made = [int((await hog).stdout.data), int(neighbour.stdout.data)]
    assert made[0] == made[1]
    assert (made[0] > 0) is has_queues(each_backend)


async def test_what_waits_in_sockets_is_bounded(each_backend: Backend) -> None:
    """Beside the memory limit on cgroup v1, within it on v2; buffers of other processes count."""
    outcome = await python(each_backend, BUFFERS, memory_mb=128)
    assert outcome.stdout.data == b"" or int(outcome.stdout.data) < 160


async def test_a_program_cannot_shield_itself_from_the_oom_killer(each_backend: Backend) -> None:
    if each_backend.name == "gvisor":
        pytest.skip("its own kernel takes the value: the test below looks at the host's")
    assert (await python(each_backend, SHIELD)).stdout.data == b"refused\n"


async def test_the_host_may_end_gvisor_before_others(gvisor: Backend) -> None:
    """Whatever a program writes inside, its kernel stays a process that the host prefers to end."""
    sandbox = await gvisor.prepare("python")
    assert isinstance(sandbox, OciSandbox)
    shielded = plan("python", f"{SHIELD}\nprint('written', flush=True)\nimport time; time.sleep(9)")
    run = asyncio.create_task(sandbox.run(shielded))
    try:
        await asyncio.sleep(1)
        told = {_command(pid): _oom_score_adj(pid) for pid in sandbox._group.pids()}
    finally:
        await sandbox.destroy()
        await asyncio.gather(run, return_exceptions=True)
    assert told["runsc-sandbox"] == told["runsc-gofer"] == 500
    assert min(told.values()) >= 0


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().partition("\0")[0]


def _oom_score_adj(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())
