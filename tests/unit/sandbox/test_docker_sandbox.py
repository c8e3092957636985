"""A container's control group: only one that carries its id is believed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from code_executor.errors import HostUnfit
from code_executor.sandbox.cgroup import CONTROLLERS_V1, CONTROLLERS_V2
from code_executor.sandbox.docker_sandbox import find_group
from code_executor.sandbox.group import Mounts

ID = "0123456789abcdef"


def v1(base: Path) -> Mounts:
    return Mounts(1, {name: base / name for name in CONTROLLERS_V1})


@pytest.mark.parametrize("where", [f"docker/{ID}", f"system.slice/docker-{ID}.scope"])
def test_the_engines_usual_places_are_tried(tmp_path: Path, where: str) -> None:
    (tmp_path / where).mkdir(parents=True)
    mounts = Mounts(2, dict.fromkeys(CONTROLLERS_V2, tmp_path))
    assert find_group(mounts, ID, 0) == dict.fromkeys(CONTROLLERS_V2, tmp_path / where)


def test_each_hierarchy_has_its_own(tmp_path: Path) -> None:
    for name in CONTROLLERS_V1:
        (tmp_path / name / "docker" / ID).mkdir(parents=True)
    found = find_group(v1(tmp_path), ID, 0)
    assert found == {name: tmp_path / name / "docker" / ID for name in CONTROLLERS_V1}


def test_another_process_of_that_number_is_not_believed(tmp_path: Path) -> None:
    with pytest.raises(HostUnfit, match="cannot be read"):
        find_group(v1(tmp_path), ID, os.getpid())
