"""``serve``: where it listens. Its life is in tests/integration/test_serve.py."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys

import pytest

from code_executor.cli.serve import bind, connections_allowed, raise_descriptor_limit
from code_executor.config import BadSettings


def test_port_0_takes_a_free_one() -> None:
    with bind("127.0.0.1", 0) as bound:
        assert bound.getsockname()[1] > 0
        assert bound.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)


def test_a_port_that_is_taken_is_said() -> None:
    with bind("127.0.0.1", 0) as first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(BadSettings, match=f"port {port}: Address already in use"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "not a host"])
def test_an_address_of_another_machine_is_said(host: str) -> None:
    with pytest.raises(BadSettings, match=host):
        bind(host, 0)


@pytest.mark.parametrize(
    ("descriptors", "wanted", "connections"),
    [(65_536, 3_060, 8_192), (10_000, 3_060, 6_940), (3_060, 3_060, 765), (1_024, 3_060, 256)],
)
def test_connections_have_what_a_full_pool_leaves(
    descriptors: int, wanted: int, connections: int
) -> None:
    assert connections_allowed(descriptors, wanted) == connections


def test_the_limit_is_raised_to_what_a_large_pool_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (1_024, 500_000))
    monkeypatch.setattr(resource, "setrlimit", lambda _which, limits: told.append(limits))
    assert raise_descriptor_limit(100_000) == 100_000
    assert raise_descriptor_limit(10) == 65_536
    assert raise_descriptor_limit(600_000) == 500_000
    assert told == [(100_000, 500_000), (65_536, 500_000), (500_000, 500_000)]


FAULTS = """
import resource
from code_executor.cli.serve import keep_freed_memory

def use():
    parts = [bytes(1_200_000) for _ in range(2)]
    b"".join(parts)

print(keep_freed_memory())
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_memory_of_the_size_of_a_binary_is_used_again() -> None:
    ran = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    set_, faults = ran.stdout.split()
    assert set_ == "True"
    assert int(faults) < 1000
