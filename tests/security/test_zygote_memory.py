"""What a forked interpreter can read of the zygote's memory says nothing of its neighbours.

The native backend forks Python out of a process that serves many sandboxes. A program can read all
of its own memory, so what the zygote keeps of its other children must not be in there.
"""

from __future__ import annotations

import subprocess

import pytest

from code_executor.ports import Backend
from code_executor.sandbox.build import BUILD
from code_executor.sandbox.conformance.bench import plan, python

pytestmark = [pytest.mark.sandbox, pytest.mark.asyncio(loop_scope="session")]

READ = """
maps = open("/proc/self/maps").read().splitlines()
base = min(int(line.split("-")[0], 16) for line in maps if line.endswith("/zygote.so"))
with open("/proc/self/mem", "rb", 0) as memory:
    memory.seek(base + {offset})
    print(any(memory.read({size})))
"""


def _place(symbol: str) -> tuple[int, int]:
    """Offset and size of a variable of the zygote's library."""
    listed = subprocess.run(
        ["nm", "-S", BUILD / "zygote.so"], capture_output=True, text=True, check=True
    ).stdout
    (found,) = (line.split() for line in listed.splitlines() if line.endswith(f" {symbol}"))
    return int(found[0], 16), int(found[1], 16)


@pytest.mark.parametrize("symbol", ["children", "child_count", "child_most"])
async def test_nothing_of_the_other_children(native: Backend, symbol: str) -> None:
    offset, size = _place(symbol)
    others = [await native.prepare(plan("python", "").flavour) for _ in range(3)]
    try:
        outcome = await python(native, READ.format(offset=offset, size=size))
    finally:
        for sandbox in others:
            await sandbox.destroy()
    assert (outcome.stdout.data, outcome.stderr.data) == (b"False\n", b"")
