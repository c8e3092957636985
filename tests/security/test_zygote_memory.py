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
from code_executor.sandbox.seccomp import number

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


OPENS = """
import ctypes, re
system_call = ctypes.CDLL(None, use_errno=True).syscall
system_call.argtypes = [ctypes.c_long] * 6 + [ctypes.c_ulong]
system_call.restype = ctypes.c_long
NO_SUCH_FILE = -1

def opens(key):
    system_call({setns}, NO_SUCH_FILE, 0, 0, 0, 0, key)
    return ctypes.get_errno() != 1

found, seen = [], set()
with open("/proc/self/mem", "rb", 0) as memory:
    for line in open("/proc/self/maps").read().splitlines():
        first, last, mode, inode = re.match("(\\w+)-(\\w+) (\\S+) \\S+ \\S+ (\\d+)", line).groups()
        if mode[0] != "r" or mode[1] != "w" or line.endswith("[vvar]"):
            continue
        memory.seek(int(first, 16))
        size = int(last, 16) - int(first, 16)
        words = memoryview(memory.read(size)).cast("Q")
        seen.update(set(words) - seen)
print(len(seen) > 10_000, [key for key in seen if opens(key)])
"""


async def test_nothing_in_it_opens_the_filter(native: Backend) -> None:
    """The zygote's children inherit its filter, which has a lock (``init/ahead.c``)."""
    outcome = await python(native, OPENS.format(setns=number("setns")), cpu_s=30, wall_s=60)
    assert (outcome.stderr.data, outcome.stdout.data) == (b"", b"True []\n")


TEXT = """
import json, os, struct
{imports}
maps = [line.split() for line in open("/proc/self/maps")]
print([line for line in maps if "w" in line[1] and "x" in line[1]])
memory = open("/proc/self/mem", "rb", 0)

def same(path):
    whole = open(path, "rb").read()
    kind, = struct.unpack_from("<H", whole, 16)
    at, = struct.unpack_from("<Q", whole, 32)
    size, count = struct.unpack_from("<HH", whole, 54)
    first = next(line for line in maps if line[-1] == path)
    base = 0 if kind == 2 else int(first[0].split("-")[0], 16) - int(first[2], 16)
    for n in range(count):
        found = struct.unpack_from("<IIQQQQ", whole, at + n * size)
        type_, flags, offset, address, _, length = found
        if type_ == 1 and not flags & 2:
            memory.seek(base + address)
            while length:
                part = memory.read(min(length, 1 << 20))
                if part != whole[offset:offset + len(part)]:
                    return False
                offset, length = offset + len(part), length - len(part)
    return True

print([same(path) for path in {paths}])
"""


@pytest.mark.parametrize(
    ("imports", "paths"),
    [
        ("", '[os.path.realpath("/proc/self/exe")]'),
        (
            "import numpy",
            '[os.path.realpath("/proc/self/exe"), numpy._core._multiarray_umath.__file__]',
        ),
    ],
    ids=["python", "python-data"],
)
async def test_program_text_is_what_the_files_hold_and_not_writable(
    native: Backend, imports: str, paths: str
) -> None:
    """Much of it is a copy in huge pages (``init/hugepages.c``)."""
    outcome = await python(native, TEXT.format(imports=imports, paths=paths))
    every = paths.count(",") + 1
    assert (outcome.stderr.data, outcome.stdout.data) == (b"", f"[]\n{[True] * every}\n".encode())
