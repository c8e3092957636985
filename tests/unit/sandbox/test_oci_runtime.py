"""The runtime's command lines; what it does on a host is in tests/integration/test_oci.py."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from code_executor.errors import SandboxUnavailable
from code_executor.sandbox import oci_runtime
from code_executor.sandbox.oci_bundle import RuntimeKind
from code_executor.sandbox.oci_runtime import Runtime


def test_runc_is_told_where_its_state_is() -> None:
    runtime = Runtime(RuntimeKind.RUNC, "/sbin/runc", Path("/state"))
    assert runtime.command("delete", "x") == ["/sbin/runc", "--root", "/state", "delete", "x"]


def test_gvisor_gets_no_network_and_leaves_the_cgroups_to_us() -> None:
    runtime = Runtime(RuntimeKind.GVISOR, "/bin/runsc", Path("/state"), "ptrace")
    options = runtime.command("run")
    assert {"--network=none", "--platform=ptrace", "--ignore-cgroups"} <= set(options)
    assert options[-1] == "run"


@pytest.mark.parametrize("left", ["lock", "state"])
async def test_what_gvisor_keeps_of_a_dead_sandbox_is_removed(tmp_path: Path, left: str) -> None:
    (tmp_path / f"box-1_sandbox:box-1.{left}").touch()
    (tmp_path / f"box-11_sandbox:box-11.{left}").touch()
    assert await Runtime(RuntimeKind.GVISOR, "/bin/runsc", tmp_path).delete("box-1")
    assert [path.name for path in tmp_path.iterdir()] == [f"box-11_sandbox:box-11.{left}"]


@pytest.mark.parametrize("lifted", [True, False])
async def test_runc_starts_without_the_limits_that_count_for_its_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lifted: bool
) -> None:
    """A stand-in for both: ``prlimit`` notes how it was called, and ends."""
    told = tmp_path / "told"
    for name in ("runc", "prlimit"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho {name} "$@" >{told}\n')
        program.chmod(0o755)
    monkeypatch.setattr(oci_runtime, "LIFT", (f"{tmp_path}/prlimit", *oci_runtime.LIFT[1:]))
    runtime = Runtime(RuntimeKind.RUNC, f"{tmp_path}/runc", tmp_path, lifted=lifted)
    here, there = socket.socketpair()
    with here, there, pytest.raises(SandboxUnavailable):
        await runtime.run("box", tmp_path, there, ())
    assert told.read_text().startswith("prlimit --memlock=unlimited" if lifted else "runc --root")


def test_only_who_may_raise_limits_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def status(effective: int) -> None:
        text = f"Name:\tx\nCapEff:\t{effective:016x}\n"
        monkeypatch.setattr(Path, "read_text", lambda _: text)

    status(1 << 24)
    assert oci_runtime.may_lift()
    status(~(1 << 24) & (1 << 40) - 1)
    assert not oci_runtime.may_lift()
