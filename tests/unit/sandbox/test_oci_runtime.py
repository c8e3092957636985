"""The runtime's command lines; what it does on a host is in tests/integration/test_oci.py."""

from __future__ import annotations

from pathlib import Path

import pytest

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
