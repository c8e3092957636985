"""The filter as a program in a sandbox meets it, on every backend: the same tables, every call.

In gVisor the calls end in its own kernel, which has the same filter (``init/contained.c`` installs
it there): what must be refused is refused by it. What it lets through and that kernel does not have
is declared in ``sandbox/differs.py``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import pytest

from code_executor.model import RunStatus
from code_executor.ports import Backend
from code_executor.sandbox import seccomp
from code_executor.sandbox.conformance.bench import python
from code_executor.sandbox.differs import CALLS_MISSING
from code_executor.sandbox.seccomp_probes import MUST_ALLOW, MUST_REFUSE, Probe, as_python
from code_executor.sandbox.seccomp_profile import ENOSYS, EPERM

pytestmark = [pytest.mark.sandbox, pytest.mark.asyncio(loop_scope="session")]
on_x86_64 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="x86-64 machine code")

WRONG = re.compile(r"(\w+) .* gave errno (\d+) wanted \d+")
CALLING = """
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex({code!r}))
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
print(ctypes.CFUNCTYPE(ctypes.c_int)(address)())
"""
INT_0X80, SYSCALL = "cd80 c3", "0f05 c3"
X32 = 1 << 30


async def answers(backend: Backend, probes: Sequence[Probe]) -> list[tuple[str, int]]:
    """The calls that did not answer as they should, with what they answered."""
    outcome = await python(backend, as_python(probes))
    *wrong, last = outcome.stdout.data.decode().splitlines() or [""]
    assert last == "probed", outcome.stderr.data
    found = [re.fullmatch(WRONG, line) for line in wrong]
    return [(match[1], int(match[2])) for match in found if match]


async def test_what_must_be_refused_is(each_backend: Backend) -> None:
    assert await answers(each_backend, MUST_REFUSE) == []


async def test_what_must_work_does(each_backend: Backend) -> None:
    missing = CALLS_MISSING.get(each_backend.name, frozenset())
    wanted = [(each.name, ENOSYS) for each in MUST_ALLOW if each.name in missing]
    assert await answers(each_backend, MUST_ALLOW) == wanted


def calling(number: int, instruction: str) -> str:
    """A program that makes a call by its own machine code, and prints what came back."""
    return CALLING.format(code=f"b8{number.to_bytes(4, 'little').hex()} {instruction}")


@on_x86_64
async def test_the_calling_convention_of_x32_kills(each_backend: Backend) -> None:
    outcome = await python(each_backend, calling(X32 | 39, SYSCALL))
    assert (outcome.status, outcome.signal) == (RunStatus.FAILED, "SIGSYS")


@on_x86_64
async def test_the_calling_convention_of_i386_leads_nowhere(each_backend: Backend) -> None:
    """It kills; gVisor has but one table of calls, in which the filter meets the number again."""
    if each_backend.name != "gvisor":
        outcome = await python(each_backend, calling(20, INT_0X80))
        assert (outcome.status, outcome.signal) == (RunStatus.FAILED, "SIGSYS")
        return
    for name in ("mount", "ptrace", "unshare", "keyctl"):
        outcome = await python(each_backend, calling(seccomp.number(name) or 0, INT_0X80))
        assert outcome.stdout.data == b"%d\n" % -EPERM


@on_x86_64
async def test_the_native_convention_returns(each_backend: Backend) -> None:
    """The counterpart of the two above: the machine code itself is fine."""
    outcome = await python(each_backend, calling(39, SYSCALL))
    assert int(outcome.stdout.data) > 1, outcome.stderr.data
