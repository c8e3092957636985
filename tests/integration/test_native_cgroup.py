"""Control groups on this host's real hierarchies: limits change both ways, nothing is left."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from code_executor.errors import HostUnfit
from code_executor.model import MIB
from code_executor.sandbox.cgroup import Tree
from code_executor.sandbox.group import Group

pytestmark = pytest.mark.sandbox


@pytest.fixture
def tree() -> Iterator[Tree]:
    try:
        made = Tree.open()
    except HostUnfit as unfit:
        if os.environ.get("WITHOUT_SANDBOX") == "1":
            pytest.skip(f"no control groups on this host: {unfit}")
        raise
    yield made
    made.close()
    assert made.names() == set()


@pytest.fixture
def group(tree: Tree) -> Iterator[Group]:
    made = tree.group(f"box-{secrets.token_hex(4)}")
    made.make(memory_bytes=64 * MIB, processes=5)
    yield made
    made.kill()
    deadline = time.monotonic() + 5
    while not made.remove():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def started_in(group: Group, *argv: str) -> subprocess.Popen[bytes]:
    """A program that is in the group before its first instruction."""
    fds = group.procs()
    paths = " ".join(f"/proc/self/fd/{fd}" for fd in fds)
    join = f'for g in {paths}; do echo $$ > "$g" || exit 99; done; exec "$@"'
    return subprocess.Popen(["/bin/sh", "-c", join, "-", *argv], pass_fds=fds)


def memory_limit(group: Group) -> int:
    directory = Path(group._paths["memory"])
    names = ("memory.max", "memory.limit_in_bytes")
    return int(next(directory / n for n in names if (directory / n).exists()).read_text())


@pytest.mark.parametrize("mib", [32, 512, 64], ids=["lower", "higher", "the same"])
def test_the_memory_limit_can_be_changed_either_way(group: Group, mib: int) -> None:
    group.limit(memory_bytes=mib * MIB, processes=9)
    assert memory_limit(group) == mib * MIB
    group.limit(memory_bytes=100 * MIB, processes=9)
    assert memory_limit(group) == 100 * MIB


def test_more_memory_than_allowed_ends_a_process_and_is_counted(group: Group) -> None:
    eater = started_in(group, "/bin/sh", "-c", "head -c 200000000 /dev/zero | tail -c 190000000")
    eater.wait(30)
    assert group.oom_kills() > 0
    peak = group.peak_bytes()
    assert peak is None or 32 * MIB < peak <= 65 * MIB


def test_no_more_processes_than_allowed(group: Group) -> None:
    script = "for i in 1 2 3 4 5 6 7 8; do sleep 30 & done"
    crowd = started_in(group, "/bin/sh", "-c", script)
    crowd.wait(10)
    assert 0 < len(group.pids()) <= 5


def test_cpu_time_of_all_processes_is_counted_and_stays(group: Group) -> None:
    assert group.cpu_us() < 100_000
    burn = "import time\nwhile time.process_time() < 0.2: pass"
    started_in(group, "/usr/bin/python3", "-c", burn).wait(30)
    assert 200_000 <= group.cpu_us() < 2_000_000


def test_kill_ends_every_process_in_it(group: Group) -> None:
    first = started_in(group, "/bin/sh", "-c", "(setsid sleep 60)& sleep 60")
    deadline = time.monotonic() + 5
    while len(group.pids()) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not group.remove()
    group.kill()
    first.wait(5)


def test_groups_that_can_yield_weigh_as_one_other_on_each_processor() -> None:
    try:
        yielding = Tree.open(yielding=True)
    except HostUnfit as unfit:
        pytest.skip(f"no control groups on this host: {unfit}")
    directory = yielding._paths.get("cpu")
    try:
        if directory is None:
            pytest.skip("no cpu hierarchy that may be written")
        name, each = ("cpu.weight", 100) if yielding.version == 2 else ("cpu.shares", 1024)
        assert int((directory / name).read_text()) == each * len(os.sched_getaffinity(0))
    finally:
        yielding.close()


def test_what_a_dead_service_left_is_swept_with_the_processes_in_it(tree: Tree) -> None:
    abandoned = Tree.open()
    left = abandoned.group("box")
    left.make(memory_bytes=64 * MIB, processes=5)
    sleeper = started_in(left, "/bin/sleep", "60")
    while sleeper.pid not in left.pids():
        time.sleep(0.01)
    for lock in abandoned._locks:  # what the kernel does when a service dies
        os.close(lock)
    abandoned._locks.clear()
    Tree.open().close()
    assert sleeper.wait(5) == -9
    assert abandoned.names() == set()
    left.remove()
