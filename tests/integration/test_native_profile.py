"""The native backend with an operator's own system call filter (``SECCOMP_PROFILE``)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.conftest import running_native

from code_executor.sandbox import seccomp
from code_executor.sandbox.conformance.bench import python

pytestmark = [pytest.mark.sandbox, pytest.mark.asyncio(loop_scope="module")]

NEEDED_BY_A_ZYGOTE = ["recvmsg", "wait4", "pwrite64", "setresuid"]

TRIES = f"""
import ctypes
system_call = ctypes.CDLL(None, use_errno=True).syscall
for number in {[seccomp.number(name) for name in NEEDED_BY_A_ZYGOTE]}:
    system_call(number, -1, 0, 0, 0, 0, 0)
    print(ctypes.get_errno())
"""


async def test_it_may_refuse_what_a_zygote_needs(tmp_path: Path) -> None:
    profile = json.loads(seccomp.default_path().read_text())
    for rule in profile["syscalls"]:
        rule["names"] = [name for name in rule["names"] if name not in NEEDED_BY_A_ZYGOTE]
    own = tmp_path / "own.json"
    own.write_text(json.dumps(profile))
    async with running_native(tmp_path, seccomp_profile=own) as backend:
        outcome = await python(backend, TRIES)
    assert (outcome.stderr.data, outcome.stdout.data) == (b"", b"1\n" * len(NEEDED_BY_A_ZYGOTE))
