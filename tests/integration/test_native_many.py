"""Many native sandboxes: at once, and one after another."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
from collections.abc import Sequence

import pytest
from tests.integration.host import descriptors, groups, inits, nothing_left, processes

from code_executor.model import RunStatus
from code_executor.sandbox.conformance.bench import carry_out, plan
from code_executor.sandbox.native import NativeBackend

pytestmark = [pytest.mark.sandbox, pytest.mark.asyncio(loop_scope="module")]

IDS = plan("python", "import os; print(open('/proc/self/uid_map').read())")


async def test_fifty_at_once_run_and_have_user_ids_of_their_own(backend: NativeBackend) -> None:
    sandboxes = await asyncio.gather(*(backend.prepare("python") for _ in range(50)))
    try:
        assert backend.live == 50
        assert len(groups(backend)) == 50
        assert len(inits()) == 50
        outcomes = await asyncio.gather(*(sandbox.run(IDS) for sandbox in sandboxes))
    finally:
        await asyncio.gather(*(sandbox.destroy() for sandbox in sandboxes))
    maps = [outcome.stdout.data.decode().split() for outcome in outcomes]
    assert all(outcome.status is RunStatus.SUCCEEDED for outcome in outcomes)
    used = [int(words[n]) for words in maps for n in (1, 4)]
    assert len(set(used)) == 100
    assert os.getuid() not in used


async def test_user_ids_are_given_back_and_used_again(backend: NativeBackend) -> None:
    assert backend._uids is not None
    free = len(backend._uids._free)
    async with asyncio.timeout(60):
        for _ in range(5):
            await carry_out(backend, IDS)
    assert len(backend._uids._free) == free


async def test_two_hundred_in_a_row_leak_nothing(backend: NativeBackend) -> None:
    plans = [plan(language, code) for language, code in PROGRAMS]
    for each in plans:
        await carry_out(backend, each)
    gc.collect()
    before = descriptors(backend), own_processes(), mounts()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(200):
        await carry_out(backend, plans[0 if number % 10 else number // 10 % len(plans)])
    await nothing_left(backend)
    gc.collect()
    assert (descriptors(backend), own_processes(), mounts()) == before
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 32 * 1024


PROGRAMS: Sequence[tuple[str, str]] = (
    ("python", "open('outputs/x', 'w').write('x'); print(1)"),
    ("node", "console.log(1)"),
    ("ruby", "puts 1"),
    ("php", "<?php echo 1;"),
    ("python", "import os; os.fork(); os.abort()"),
)


def own_processes() -> int:
    """Of this process's own and of those below it."""
    parents = {process.pid: process.parent for process in processes()}
    below = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return len(below)


def mounts() -> int:
    with open("/proc/self/mounts") as file:
        return len(file.readlines())
