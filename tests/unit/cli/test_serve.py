"""``serve``: where it listens. Its life is in tests/integration/test_serve.py."""

from __future__ import annotations

import socket

import pytest

from code_executor.cli.serve import bind
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
