"""How a container is held."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from code_executor.model import MIB
from code_executor.sandbox.docker_spec import MASKED, Confinement, container

HELD = Confinement(seccomp="{}", apparmor=None, scratch_mb=64, limits_sockets=True)


def spec(held: Confinement = HELD, ahead: str | None = None) -> dict[str, Any]:
    return container(
        "image",
        ["/init", "--contained"],
        held,
        memory_bytes=64 * MIB,
        processes=64,
        labels={"a": "b"},
        ahead=ahead,
    )


def test_nothing_is_given() -> None:
    host = spec()["HostConfig"]
    assert host["CapDrop"] == ["ALL"]
    assert not {"CapAdd", "Privileged", "Binds", "Mounts", "Devices", "PortBindings"} & set(host)
    assert (host["NetworkMode"], host["ReadonlyRootfs"]) == ("none", True)
    assert {"/proc/kcore", "/proc/keys", "/sys"} <= set(MASKED)


def test_what_may_not_be_written_to_is_not_masked_by_a_device_that_may() -> None:
    host = spec()["HostConfig"]
    assert "/proc/sysrq-trigger" in host["ReadonlyPaths"]
    assert "/proc/sysrq-trigger" not in host["MaskedPaths"]


def test_memory_is_limited_without_swap() -> None:
    host = spec()["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == 64 * MIB
    assert host["PidsLimit"] == 65
    assert "NanoCpus" not in host


def test_the_filter_and_the_profile_are_there() -> None:
    host = spec(replace(HELD, apparmor="profile"))["HostConfig"]
    assert host["SecurityOpt"] == ["no-new-privileges", "seccomp={}", "apparmor=profile"]
    assert spec()["HostConfig"]["SecurityOpt"] == ["no-new-privileges", "seccomp={}"]


def test_only_a_waiver_leaves_them_away() -> None:
    host = spec(replace(HELD, apparmor="profile", waived=True))["HostConfig"]
    assert host["SecurityOpt"] == ["no-new-privileges", "seccomp=unconfined"]


def test_scratch_is_bounded_and_the_users() -> None:
    tmpfs = spec()["HostConfig"]["Tmpfs"]
    assert set(tmpfs) == {"/work", "/tmp"}
    assert all("size=64m" in options and "nr_inodes=" in options for options in tmpfs.values())
    assert all("uid=1000" in options and "nosuid" in options for options in tmpfs.values())


def test_a_mounted_init_is_read_only() -> None:
    (mount,) = spec(ahead="/host/ahead")["HostConfig"]["Mounts"]
    assert mount == {
        "Type": "bind",
        "Source": "/host/ahead",
        "Target": "/opt/ahead",
        "ReadOnly": True,
    }


def test_what_the_kernel_counts_by_user_nobody_can_use_up() -> None:
    limits = {
        each["Name"]: (each["Soft"], each["Hard"]) for each in spec()["HostConfig"]["Ulimits"]
    }
    assert limits["msgqueue"] == (0, 0)
    assert limits["core"] == (0, 0)
