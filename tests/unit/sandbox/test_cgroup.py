"""Control groups on directories that look like the kernel's: what is written where, what is read.

The kernel's own part (that the limits bite, that v1 wants them in order) is tried on the real
hierarchies in ``tests/integration/test_native_cgroup.py``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.sandbox.hierarchies import imitate

from code_executor.errors import HostUnfit
from code_executor.sandbox import cgroup
from code_executor.sandbox.cgroup import CONTROLLERS_V1, PREFIX, Tree, sweep
from code_executor.sandbox.group import Mounts


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    imitate(monkeypatch)


# ── finding the hierarchies ──


def mounted(monkeypatch: pytest.MonkeyPatch, *mounts: tuple[Path, str, str]) -> None:
    lines = [(str(point), kind, set(options.split(","))) for point, kind, options in mounts]
    monkeypatch.setattr(cgroup, "_mount_lines", lambda: iter(lines))


def mounted_apart(monkeypatch: pytest.MonkeyPatch, top: Path) -> None:
    """Version 1's hierarchies below ``top``, one for each controller."""
    for name in CONTROLLERS_V1:
        (top / name).mkdir()
    mounted(monkeypatch, *((top / name, "cgroup", f"rw,{name}") for name in CONTROLLERS_V1))


def test_v2_is_taken_when_it_has_the_controllers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    mounted(monkeypatch, (Path("/"), "ext4", "rw"), (tmp_path, "cgroup2", "rw"))
    found = cgroup.find_mounts()
    assert found == Mounts(2, dict.fromkeys(("memory", "pids", "cpu"), tmp_path))
    assert found.distinct == (tmp_path,)


def test_v1_is_taken_where_v2_is_there_without_controllers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cgroup.controllers").write_text("")
    mounted(
        monkeypatch,
        (tmp_path, "cgroup2", "rw"),
        (Path("/c/memory"), "cgroup", "rw,memory"),
        (Path("/c/cpu,cpuacct"), "cgroup", "rw,cpu,cpuacct"),
        (Path("/c/pids"), "cgroup", "rw,pids"),
        (Path("/again/memory"), "cgroup", "rw,memory"),
    )
    found = cgroup.find_mounts()
    assert found.version == 1
    assert found.directories == {
        "memory": Path("/c/memory"),
        "cpuacct": Path("/c/cpu,cpuacct"),
        "pids": Path("/c/pids"),
    }


def test_controllers_mounted_together_are_one_directory() -> None:
    mounts = Mounts(1, {"memory": Path("/m"), "pids": Path("/p"), "cpuacct": Path("/p")})
    assert mounts.distinct == (Path("/m"), Path("/p"))


@pytest.mark.parametrize("missing", ["memory", "pids", "cpuacct"])
def test_a_host_without_a_controller_is_unfit(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = [name for name in ("memory", "pids", "cpuacct") if name != missing]
    mounted(monkeypatch, *((Path("/c") / name, "cgroup", f"rw,{name}") for name in there))
    with pytest.raises(HostUnfit) as caught:
        cgroup.find_mounts()
    assert "mount" in caught.value.fix


@pytest.mark.parametrize("writable", [True, False])
def test_v1_has_its_cpu_hierarchy_where_that_is_asked_for_and_may_be_written(
    writable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tops = {name: tmp_path / name for name in (*CONTROLLERS_V1, "cpu")}
    for top in tops.values():
        top.mkdir()
    mounted(monkeypatch, *((top, "cgroup", f"rw,{name}") for name, top in tops.items()))
    monkeypatch.setattr(os, "access", lambda path, _mode: writable or Path(path) != tops["cpu"])
    for yielding in (True, False):
        tree = Tree.open(yielding=yielding)
        group = tree.group("box")
        expected = [top for name, top in tops.items() if name != "cpu" or (yielding and writable)]
        assert group.files("x") == [str(top / tree.name / "box/x") for top in expected]
        tree.close()
        assert not list(tops["cpu"].iterdir())


# ── the service's own directory, and those of services before it ──


def test_a_tree_knows_its_groups_and_removes_them(tmp_path: Path) -> None:
    base = tmp_path / "base"
    (base / "mine" / "sandbox-1").mkdir(parents=True)
    tree = Tree(Mounts(1, {"memory": base}), {"memory": base}, "mine")
    assert tree.names() == {"sandbox-1"}
    tree.close()
    assert tree.names() == set()
    assert list(base.iterdir()) == []
    tree.close()


def test_only_directories_of_services_that_are_gone_are_swept(tmp_path: Path) -> None:
    for name in (f"{PREFIX}gone", f"{PREFIX}alive", "system.slice"):
        (tmp_path / name / "sandbox-1").mkdir(parents=True)
    holder = os.open(tmp_path / f"{PREFIX}alive", os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    assert list(sweep([tmp_path, tmp_path])) == [f"{PREFIX}gone"]
    assert {path.name for path in tmp_path.iterdir()} == {f"{PREFIX}alive", "system.slice"}
    os.close(holder)
    assert list(sweep([tmp_path])) == [f"{PREFIX}alive"]


def test_a_service_is_alive_that_holds_the_lock_in_one_hierarchy(tmp_path: Path) -> None:
    """A runtime has made the directory in the others for it."""
    for hierarchy in ("cpu", "memory"):
        (tmp_path / hierarchy / f"{PREFIX}alive").mkdir(parents=True)
    holder = os.open(tmp_path / "memory" / f"{PREFIX}alive", os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    assert not sweep([tmp_path / "cpu", tmp_path / "memory"])
    assert (tmp_path / "cpu" / f"{PREFIX}alive").exists()
    os.close(holder)
    assert list(sweep([tmp_path / "cpu", tmp_path / "memory"])) == [f"{PREFIX}alive"]
    assert not list(tmp_path.glob("*/*"))


def test_a_start_survives_that_another_one_sweeps_what_it_has_not_locked_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted_apart(monkeypatch, tmp_path)
    lock, swept = cgroup._lock, list[str]()

    def late(path: Path) -> int:
        if len(swept) == 1:  # the second hierarchy's: the first one is locked
            path.rmdir()
        swept.append(path.name)
        return lock(path)

    monkeypatch.setattr(cgroup, "_lock", late)
    tree = Tree.open()
    lost, name = swept[0], tree.name
    assert lost != name
    assert {path.name for path in tmp_path.glob("*/*")} == {name}
    tree.close()
    assert not list(tmp_path.glob("*/*"))


def test_a_lock_of_a_directory_that_is_gone_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another start's sweep held it while this one had opened the directory, and removed it."""
    mounted_apart(monkeypatch, tmp_path)
    flock, swept = fcntl.flock, list[str]()

    def late(fd: int, how: int) -> None:
        if not swept:
            swept.append(os.readlink(f"/proc/self/fd/{fd}"))
            os.rmdir(swept[0])
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    tree = Tree.open()
    assert {path.name for path in tmp_path.glob("*/*")} == {tree.name} != {Path(swept[0]).name}
    assert len(list(tmp_path.glob("*/*"))) == len(CONTROLLERS_V1)
    tree.close()


def test_a_start_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted_apart(monkeypatch, tmp_path)
    lock, held = cgroup._lock, list[int]()

    def refused(path: Path) -> int:
        if held:
            raise PermissionError(13, "no")
        held.append(lock(path))
        return held[0]

    monkeypatch.setattr(cgroup, "_lock", refused)
    with pytest.raises(HostUnfit):
        Tree.open()
    assert not list(tmp_path.glob("*/*"))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(held[0])


def test_a_service_that_has_started_since_a_sweep_began_is_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen first in the last hierarchy, where a runtime has made its directory."""
    for hierarchy in ("memory", "cpu"):
        (tmp_path / hierarchy / f"{PREFIX}alive").mkdir(parents=True)
    holder = os.open(tmp_path / "memory" / f"{PREFIX}alive", os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    look = Path.glob

    def early(self: Path, pattern: str) -> Iterator[Path]:
        return iter(()) if self.name == "memory" else iter(list(look(self, pattern)))

    monkeypatch.setattr(Path, "glob", early)
    assert not sweep([tmp_path / "memory", tmp_path / "cpu"])
    os.close(holder)


def test_what_others_have_swept_meanwhile_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for hierarchy in ("cpu", "memory"):
        (tmp_path / hierarchy / f"{PREFIX}gone").mkdir(parents=True)
    lock = cgroup._lock

    def late(path: Path) -> int:
        if path.parent.name == "cpu":
            path.rmdir()
        return lock(path)

    monkeypatch.setattr(cgroup, "_lock", late)
    assert list(sweep([tmp_path / "cpu", tmp_path / "memory"])) == [f"{PREFIX}gone"]
    assert not list(tmp_path.glob("*/*"))


def test_its_directories_are_locked_until_they_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another start, which sweeps as well, leaves them alone."""
    (tmp_path / f"{PREFIX}gone").mkdir()
    remove = cgroup._remove_tree

    def seen(path: Path) -> None:
        with pytest.raises(BlockingIOError):
            cgroup._lock(path)
        remove(path)

    monkeypatch.setattr(cgroup, "_remove_tree", seen)
    assert list(sweep([tmp_path])) == [f"{PREFIX}gone"]


@pytest.mark.parametrize("late", [False, True])
def test_what_is_gone_is_not_removed_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, late: bool
) -> None:
    """Of what is not there, rmdir(2) says as well that the file system may only be read."""
    gone, listed = tmp_path / "gone", os.listdir
    if late:
        gone.mkdir()

    def meanwhile(path: str) -> list[str]:
        if late:
            Path.rmdir(gone)
        return listed(path)

    def refused(_path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "listdir", meanwhile)
    if not late:
        monkeypatch.setattr(Path, "rmdir", refused)
    monkeypatch.setattr(time, "sleep", lambda _seconds: pytest.fail("it waits"))
    cgroup._remove_tree(gone)


def test_removing_never_signals_this_process_s_own_group(tmp_path: Path) -> None:
    """A process that this pid namespace cannot see is listed as 0, which kill(2) takes for us."""
    code = (
        "import sys; from pathlib import Path; from code_executor.sandbox import cgroup\n"
        "cgroup.sweep([Path(sys.argv[1])])\n"
    )
    foreign = tmp_path / f"{PREFIX}gone"
    foreign.mkdir()
    (foreign / "cgroup.procs").write_text("0\n")  # a file: rmdir fails, as on a busy group
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], timeout=30, start_new_session=True
    )
    assert done.returncode == 0


def test_what_a_runtime_left_of_a_tree_is_removed_when_it_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "freezer" / "tree").mkdir(parents=True)
    (tmp_path / "other" / "tree").mkdir(parents=True)
    mounts = [(str(tmp_path / "freezer"), "cgroup", {""}), (str(tmp_path / "other"), "tmpfs", {""})]
    monkeypatch.setattr(cgroup, "_mount_lines", lambda: iter(mounts))
    cgroup.remove_empty("tree")
    assert not (tmp_path / "freezer" / "tree").exists()
    assert (tmp_path / "other" / "tree").exists()


# ── who comes first ──


@pytest.mark.parametrize("leader", [True, False], ids=["leader", "of a shell"])
def test_the_service_comes_before_its_runs_where_that_is_its_own_to_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, leader: bool
) -> None:
    session, leaf = tmp_path / "autogroup", tmp_path / "supervisor"
    leaf.mkdir()
    for file in (session, leaf / "cpu.weight"):
        file.write_text("as it was")
    monkeypatch.setattr(cgroup, "AUTOGROUP", session)
    monkeypatch.setattr(os, "getsid", lambda _pid: os.getpid() if leader else 1)
    cgroup._come_first([tmp_path, tmp_path])
    assert session.read_text() == ("-10it was" if leader else "as it was")
    assert (leaf / "cpu.weight").read_text() == "1000t was"


def test_without_the_right_or_the_files_it_has_an_ordinary_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "AUTOGROUP", tmp_path / "autogroup")
    monkeypatch.setattr(os, "getsid", lambda _pid: os.getpid())
    cgroup._come_first([tmp_path])
    assert list(tmp_path.iterdir()) == []
