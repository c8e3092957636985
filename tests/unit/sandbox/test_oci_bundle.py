"""The bundle as data: what isolates is in it, for each runtime."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from code_executor.sandbox.contained import FILTER, INIT
from code_executor.sandbox.oci_bundle import Box, RuntimeKind, config, write_root
from code_executor.sandbox.root import Bind, Directory, Link, Text

OPERATIONS = (
    Directory("usr"),
    Bind("usr", "/usr"),
    Link("bin", "usr/bin"),
    Text("etc/hostname", b"sandbox\n"),
    Text(INIT[1:], b"init"),
    Text("dev/null", b""),
    Bind("dev/null", "/dev/null", True),
    Directory("dev/shm"),
    Directory("tmp"),
)
RUNC = Box(
    RuntimeKind.RUNC, Path("/root-of-all"), OPERATIONS, ["init"], 64, (5000, 5001), "/tree/box"
)
GVISOR = Box(RuntimeKind.GVISOR, Path("/root-of-all"), OPERATIONS, ["init"], 64)
BOTH = pytest.mark.parametrize("box", [RUNC, GVISOR], ids=lambda box: str(box.kind))


def mounts(box: Box) -> Mapping[str, Mapping[str, Any]]:
    return {mount["destination"]: mount for mount in config(box)["mounts"]}


@BOTH
def test_nothing_but_three_file_systems_of_its_own_can_be_written(box: Box) -> None:
    found = config(box)
    assert found["root"] == {"path": "/root-of-all", "readonly": True}
    writable = {path for path, mount in mounts(box).items() if "ro" not in mount["options"]}
    assert writable == {"/work", "/tmp", "/dev/shm", "/proc"}


@BOTH
def test_no_mount_gives_set_user_id_programs_anything(box: Box) -> None:
    assert all("nosuid" in mount["options"] for mount in mounts(box).values())


@BOTH
def test_no_device_counts_but_those_that_are_listed(box: Box) -> None:
    bare = {path for path, mount in mounts(box).items() if "nodev" not in mount["options"]}
    assert bare == ({"/dev/null"} if box.kind is RuntimeKind.RUNC else set())
    assert config(box)["linux"]["resources"]["devices"] == [{"allow": False, "access": "rwm"}]


@BOTH
def test_its_own_file_systems_have_a_size(box: Box) -> None:
    own = [mount for mount in mounts(box).values() if mount["type"] == "tmpfs"]
    assert all("size=64m" in m["options"] for m in own if "ro" not in m["options"])


@BOTH
def test_the_process_has_few_capabilities_and_can_gain_none(box: Box) -> None:
    process = config(box)["process"]
    assert process["noNewPrivileges"] is True
    assert process["env"] == []
    for kept in process["capabilities"].values():
        assert set(kept) == {
            *("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH"),
            *("CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP"),
        }
    assert not {"ambient", "inheritable"} & process["capabilities"].keys()


def test_no_queue_is_to_be_had_where_one_sandbox_could_use_up_those_of_all() -> None:
    def queues(box: Box) -> int:
        limits = {each["type"]: each["hard"] for each in config(box)["process"]["rlimits"]}
        return int(limits["RLIMIT_MSGQUEUE"])

    assert queues(RUNC) > 0
    assert queues(replace(RUNC, shared_account=True)) == 0


@BOTH
def test_every_namespace_is_new(box: Box) -> None:
    namespaces = config(box)["linux"]["namespaces"]
    assert {"pid", "ipc", "uts", "mount", "network"} <= {each["type"] for each in namespaces}
    assert all("path" not in each for each in namespaces)


def test_runc_shares_no_user_with_the_host() -> None:
    linux = config(RUNC)["linux"]
    wanted = [
        {"containerID": 0, "hostID": 5000, "size": 1},
        {"containerID": 1000, "hostID": 5001, "size": 1},
    ]
    assert linux["uidMappings"] == linux["gidMappings"] == wanted
    assert {"user", "cgroup"} <= {each["type"] for each in linux["namespaces"]}
    assert linux["cgroupsPath"] == "/tree/box"
    assert "/proc/kcore" in linux["maskedPaths"]
    assert "/proc/sysrq-trigger" in linux["readonlyPaths"]
    assert "/proc/sysrq-trigger" not in linux["maskedPaths"]  # /dev/null can be written to
    assert "hidepid=invisible" in mounts(RUNC)["/proc"]["options"]


def test_runc_makes_no_devices_of_its_own() -> None:
    assert mounts(RUNC)["/dev"]["type"] == "bind"


def test_gvisor_shows_nothing_of_sys() -> None:
    assert mounts(GVISOR)["/sys"]["type"] == "tmpfs"


def test_the_same_box_gives_the_same_configuration() -> None:
    assert config(RUNC) == config(replace(RUNC))


def test_the_root_holds_everything_but_the_binds(tmp_path: Path) -> None:
    write_root(tmp_path, OPERATIONS, b"filter")
    assert (tmp_path / "etc/hostname").read_bytes() == b"sandbox\n"
    assert os.readlink(tmp_path / "bin") == "usr/bin"
    assert list((tmp_path / "usr").iterdir()) == []
    assert (tmp_path / FILTER[1:]).read_bytes() == b"filter"
    assert stat.S_IMODE((tmp_path / INIT[1:]).stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "etc").stat().st_mode) == 0o755
    # Of the mount point, since runc gives what it mounts there the same.
    assert stat.S_IMODE((tmp_path / "tmp").stat().st_mode) == 0o1777
    assert stat.S_IMODE((tmp_path / "dev/shm").stat().st_mode) == 0o1777
