"""Everything observable of a sandboxed process is exactly what ``posture.py`` says."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from tests.security import posture

from code_executor.ports import Backend
from code_executor.sandbox.conformance.bench import python, told

pytestmark = [pytest.mark.sandbox, pytest.mark.asyncio(loop_scope="session")]
OBSERVER = Path(__file__).with_name("observer.py").read_text()
WARM: dict[str, str] = {}
COLD = {"PYTHONDONTWRITEBYTECODE": "1"}
"""A variable that is read at interpreter start, so that no warm interpreter can serve."""


async def observe(native: Backend, env: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = told(await python(native, OBSERVER, env=env))
    return found


@pytest.fixture(params=[WARM, COLD], ids=["warm", "cold"])
async def seen(native: Backend, request: pytest.FixtureRequest) -> dict[str, Any]:
    """What a program observed about itself, forked from a warm interpreter or started anew."""
    found = await observe(native, request.param)
    found["environment"] = {k: v for k, v in found["environment"].items() if k not in COLD}
    return found


async def test_plain_facts(seen: dict[str, Any]) -> None:
    assert {key: seen[key] for key in posture.PLAIN} == posture.PLAIN


async def test_status(seen: dict[str, Any]) -> None:
    open_fields = posture.STATUS_OF_THE_MOMENT | posture.STATUS_OF_THE_HOST
    closed = {k: v for k, v in seen["status"].items() if k not in open_fields}
    assert closed == {k: v for k, v in posture.STATUS.items() if k in seen["status"]}
    assert set(posture.STATUS) - set(seen["status"]) <= {"Kthread", "Seccomp_filters"}


async def test_environment(seen: dict[str, Any]) -> None:
    assert seen["environment"] == posture.ENVIRONMENT


async def test_limits(seen: dict[str, Any]) -> None:
    assert seen["limits"] == posture.LIMITS


async def test_mounts(seen: dict[str, Any]) -> None:
    for mount in seen["mounts"]:
        kind, wanted = _expected_mount(mount["point"])
        assert set(mount["options"].split(",")) - posture.IRRELEVANT_OPTIONS == wanted, mount
        assert kind in (posture.ANY, mount["type"]), mount
    points = {mount["point"] for mount in seen["mounts"]}
    assert set(posture.MOUNTS) - points <= {"/opt/go", "/opt/python"}


def _expected_mount(point: str) -> tuple[str, frozenset[str]]:
    """Type and options of the mount at ``point``; a point nobody knows of is a failure."""
    if point in posture.MASKED | posture.UNMERGED:
        return posture.ANY, posture.READ_ONLY
    assert point in posture.MOUNTS, f"an unexpected mount at {point}"
    return posture.MOUNTS[point]


async def test_directories(seen: dict[str, Any]) -> None:
    links = {name.removeprefix("/") for name in posture.UNMERGED}
    assert set(seen["root"]) - links == posture.ROOT
    assert seen["dev"] == posture.DEV
    assert set(seen["etc"]) - posture.ETC_COPIED == posture.ETC
    assert set(seen["opt"]) <= {"python", "go", "ahead"}
    assert set(seen["work"]) == {"main.py", "outputs"}


async def test_namespaces_are_its_own(seen: dict[str, Any]) -> None:
    host = {name: os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")}
    shared = {name for name, inode in seen["namespaces"].items() if host.get(name) == inode}
    assert shared == posture.SHARED_NAMESPACES & set(seen["namespaces"])


async def test_maps_lead_to_nobody_of_the_host(seen: dict[str, Any]) -> None:
    for name in ("uid_map", "gid_map"):
        for _, outside, count in seen[name]:
            assert int(outside) >= 65_536 or os.geteuid() != 0, seen[name]
            assert int(count) == 1, seen[name]


async def test_two_runs_have_two_users(native: Backend) -> None:
    slow = OBSERVER + "\nimport time; time.sleep(0.5)\n"
    outcomes = await asyncio.gather(*(python(native, slow) for _ in range(4)))
    maps = [tuple(outside for _, outside, _ in told(outcome)["uid_map"]) for outcome in outcomes]
    assert len(set(maps)) == 4, maps


async def test_nothing_new_is_told(seen: dict[str, Any]) -> None:
    """Every fact that the observer tells is compared by one of the tests above."""
    compared = {"status", "mounts", "limits", "namespaces", "uid_map", "gid_map", "environment",
                "root", "dev", "etc", "work", "opt", "parent", *posture.PLAIN}  # fmt: skip
    assert set(seen) == compared
    assert seen["parent"] in (0, 1)
