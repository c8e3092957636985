"""Everything observable of a sandboxed process is exactly what ``posture.py`` says, everywhere."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.security import posture
from tests.security.posture import Posture

from code_executor.ports import Backend
from code_executor.sandbox.conformance.bench import python, told
from code_executor.sandbox.oci_runtime import may_lift

pytestmark = [pytest.mark.sandbox, pytest.mark.asyncio(loop_scope="session")]
OBSERVER = Path(__file__).with_name("observer.py").read_text()
WARM: dict[str, str] = {}
COLD = {"PYTHONDONTWRITEBYTECODE": "1"}
"""A variable that is read at interpreter start, so that no warm interpreter can serve."""


async def observe(backend: Backend, env: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = told(await python(backend, OBSERVER, env=env))
    return found


@pytest_asyncio.fixture(loop_scope="session", params=[WARM, COLD], ids=["warm", "cold"])
async def seen(each_backend: Backend, request: pytest.FixtureRequest) -> dict[str, Any]:
    """What a program observed about itself, in a warm interpreter or one started anew."""
    found = await observe(each_backend, request.param)
    found["environment"] = {k: v for k, v in found["environment"].items() if k not in COLD}
    return found


@pytest.fixture
def expected(each_backend: Backend) -> Posture:
    if each_backend.name == "runc" and not may_lift():
        return posture.RUNC_OF_A_LESSER_ROOT
    return posture.OF[each_backend.name]


async def test_plain_facts(seen: dict[str, Any], expected: Posture) -> None:
    assert {key: seen[key] for key in expected.plain} == expected.plain


async def test_status(seen: dict[str, Any], expected: Posture) -> None:
    open_fields = posture.STATUS_OF_THE_MOMENT | posture.STATUS_OF_THE_HOST
    closed = {k: v for k, v in seen["status"].items() if k not in open_fields}
    assert closed == {k: v for k, v in expected.status.items() if k in seen["status"]}
    assert set(expected.status) - set(seen["status"]) <= expected.status_absent


async def test_environment(seen: dict[str, Any]) -> None:
    assert seen["environment"] == posture.ENVIRONMENT


async def test_limits(seen: dict[str, Any], expected: Posture) -> None:
    of_the_host = expected.limits_of_the_host
    found = {k: v for k, v in seen["limits"].items() if k not in of_the_host}
    assert found == {k: v for k, v in expected.limits.items() if k not in of_the_host}


async def test_mounts(seen: dict[str, Any], expected: Posture) -> None:
    covered: set[str] = set()  # the engine covers some of its own mounts, wholly
    for mount in reversed(seen["mounts"]):
        if mount["point"] in covered or _below(mount["point"], covered & {"/sys"}):
            continue
        covered.add(mount["point"])
        kind, wanted = _expected_mount(mount["point"], expected)
        assert set(mount["options"].split(",")) - posture.IRRELEVANT_OPTIONS == wanted, mount
        assert kind in (posture.ANY, mount["type"]), mount
    points = {mount["point"] for mount in seen["mounts"]}
    may_lack = {"/opt/go", "/opt/python", *posture.MASKED}
    assert set(expected.mounts) - points <= may_lack


def _below(point: str, tops: set[str]) -> bool:
    return any(point.startswith(f"{top}/") for top in tops)


def _expected_mount(point: str, expected: Posture) -> tuple[str, frozenset[str]]:
    """Type and options of the mount at ``point``; a point nobody knows of is a failure."""
    if point in expected.mounts:
        return expected.mounts[point]
    if point in posture.UNMERGED:
        return posture.ANY, posture.READ_ONLY
    assert point in posture.MASKED, f"an unexpected mount at {point}"
    return posture.ANY, expected.masked


async def test_directories(seen: dict[str, Any], expected: Posture) -> None:
    links = {name.removeprefix("/") for name in posture.UNMERGED}
    assert set(seen["root"]) - links == expected.root
    assert seen["dev"] == expected.dev
    assert expected.etc is None or set(seen["etc"]) - posture.ETC_COPIED == expected.etc
    assert set(seen["opt"]) <= {"python", "go", "ahead"}
    assert set(seen["work"]) == {"main.py", "outputs"}
    assert seen["root"]["tmp"] == seen["dev"]["shm"] == "drwxrwxrwt"


async def test_namespaces_are_its_own(seen: dict[str, Any], expected: Posture) -> None:
    host = {name: os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")}
    shared = {name for name, inode in seen["namespaces"].items() if host.get(name) == inode}
    assert shared == expected.shared_namespaces & set(seen["namespaces"])


async def test_maps_lead_to_nobody_of_the_host(seen: dict[str, Any], expected: Posture) -> None:
    for name in ("uid_map", "gid_map"):
        if not expected.own_users:  # another kernel's ids, or the host's own: nothing is mapped
            assert seen[name] == [["0", "0", "4294967295"]]
            continue
        for _, outside, count in seen[name]:
            assert int(outside) >= 65_536 or os.geteuid() != 0, seen[name]
            assert int(count) == 1, seen[name]


async def test_two_runs_have_two_users(each_backend: Backend, expected: Posture) -> None:
    slow = OBSERVER + "\nimport time; time.sleep(0.5)\n"
    outcomes = await asyncio.gather(*(python(each_backend, slow) for _ in range(4)))
    maps = [tuple(outside for _, outside, _ in told(outcome)["uid_map"]) for outcome in outcomes]
    assert len(set(maps)) == (4 if expected.own_users else 1), maps


async def test_nothing_new_is_told(seen: dict[str, Any]) -> None:
    """Every fact that the observer tells is compared by one of the tests above."""
    compared = {"status", "mounts", "limits", "namespaces", "uid_map", "gid_map", "environment",
                "root", "dev", "etc", "work", "opt", "parent", *posture.PLAIN}  # fmt: skip
    assert set(seen) == compared
    assert seen["parent"] in (0, 1)
