"""A container's control group: only one that carries its id is believed; its end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import pytest

from code_executor.errors import HostUnfit
from code_executor.sandbox.cgroup import CONTROLLERS_V1, CONTROLLERS_V2
from code_executor.sandbox.docker_sandbox import Counted, find_group, limit_sockets
from code_executor.sandbox.group import SOCKETS_V1_BYTES, Group, Mounts

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


def test_sockets_have_a_limit_where_the_kernel_does_not_count_them(tmp_path: Path) -> None:
    paths = {"memory": tmp_path}
    (tmp_path / "memory.kmem.tcp.limit_in_bytes").touch()
    assert limit_sockets(v1(tmp_path), paths)
    assert int((tmp_path / "memory.kmem.tcp.limit_in_bytes").read_text()) == SOCKETS_V1_BYTES


def test_a_limit_that_cannot_be_set_is_told(tmp_path: Path) -> None:
    paths = {"memory": tmp_path / "gone"}
    assert not limit_sockets(v1(tmp_path), paths)
    assert limit_sockets(Mounts(2, dict.fromkeys(CONTROLLERS_V2, tmp_path)), paths)


class Vanishing:
    """A group whose files are gone after the first look."""

    looks = 0

    def _look(self, value: int) -> int:
        self.looks += 1
        if self.looks > 3:
            raise OSError(19, "No such device")
        return value

    def cpu_us(self) -> int:
        return self._look(5)

    def oom_kills(self) -> int:
        return self._look(1)

    def peak_bytes(self) -> int:
        return self._look(4096)


def test_what_was_counted_outlives_the_group() -> None:
    counted = Counted(cast(Group, Vanishing()))
    counted.keep()
    assert (counted.cpu_us(), counted.oom_kills(), counted.peak_bytes()) == (5, 1, 4096)
