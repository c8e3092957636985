"""Control groups on directories that look like the kernel's: what is written where, what is read.

The kernel's own part (that the limits bite, that v1 wants them in order) is tried on the real
hierarchies in ``tests/integration/test_native_cgroup.py``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from code_executor.errors import HostUnfit, SandboxUnavailable
from code_executor.sandbox import cgroup
from code_executor.sandbox.cgroup import PREFIX, Group, Mounts, Tree, sweep

FILES: dict[str, dict[str, str]] = {
    "memory": {
        "cgroup.procs": "",
        "memory.limit_in_bytes": "",
        "memory.memsw.limit_in_bytes": "",
        "memory.max_usage_in_bytes": "4096\n",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    },
    "pids": {"cgroup.procs": "", "pids.max": "", "pids.events": "max 3\n"},
    "cpuacct": {"cgroup.procs": "", "cpuacct.usage": "1234567\n"},
    "unified": {
        "cgroup.procs": "",
        "pids.max": "",
        "pids.events": "max 3\n",
        "memory.max": "",
        "memory.swap.max": "",
        "memory.oom.group": "",
        "memory.events": "low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 1\n",
        "memory.peak": "4096\n",
        "cpu.stat": "usage_usec 1234\nuser_usec 1000\nsystem_usec 234\n",
        "cgroup.kill": "",
    },
}


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group's directory is made with its files in it, and removed with them once it is empty."""
    mkdir, rmdir = os.mkdir, os.rmdir

    def make(path: str | Path, mode: int = 0o777) -> None:
        mkdir(path, mode)
        for name, text in FILES.get(Path(path).parent.name, {}).items():
            Path(path, name).write_text(text)

    def remove(path: str | Path) -> None:
        procs = Path(path, "cgroup.procs")
        if procs.exists():
            if procs.read_text():
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            for entry in Path(path).iterdir():
                entry.unlink()
        rmdir(path)

    monkeypatch.setattr(os, "mkdir", make)
    monkeypatch.setattr(os, "rmdir", remove)


class Layout:
    """The group ``box`` on an imitated hierarchy, and its files."""

    def __init__(self, root: Path, version: int) -> None:
        self.version = version
        names = ("memory", "pids", "cpuacct") if version == 1 else ("memory", "pids", "cpu")
        self._tops = {n: root / (n if version == 1 else "unified") for n in names}
        for top in set(self._tops.values()):
            os.mkdir(top)
        mounts = Mounts(version, dict(self._tops))
        self.group = Group(mounts, {name: top / "box" for name, top in self._tops.items()})

    def make(self) -> Group:
        self.group.make(memory_bytes=1 << 20, processes=5)
        return self.group

    def file(self, name: str) -> Path:
        found = [top / "box" / name for top in self._tops.values()]
        return next((path for path in found if path.exists()), found[0])

    def procs(self) -> list[Path]:
        return [top / "box" / "cgroup.procs" for top in dict.fromkeys(self._tops.values())]


@pytest.fixture
def v1(tmp_path: Path) -> Layout:
    return Layout(tmp_path, 1)


@pytest.fixture
def v2(tmp_path: Path) -> Layout:
    return Layout(tmp_path, 2)


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Layout]:
    """A made group of either version."""
    made = Layout(tmp_path, request.param)
    made.make()
    yield made
    for path in made.procs():
        if path.exists():
            path.write_text("")
    assert made.group.remove()


def test_an_oci_runtime_is_told_where_in_the_hierarchy_it_is(layout: Layout) -> None:
    assert layout.group.path == "/box"
    assert layout.group.files("cgroup.procs") == [str(path) for path in layout.procs()]


def test_refused_processes_are_counted(layout: Layout) -> None:
    assert layout.group.refused_processes() == 3
    layout.file("pids.events").unlink()
    assert layout.group.refused_processes() == 0


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


# ── limits ──


def test_limits_on_v2_leave_no_swap_and_spare_init_when_memory_is_out(v2: Layout) -> None:
    v2.make()
    names = ("pids.max", "memory.max", "memory.swap.max", "memory.oom.group")
    assert [v2.file(name).read_text() for name in names] == ["5", "1048576", "0", ""]
    assert v2.group.remove()


def test_limits_on_v1_count_memory_and_swap_as_one(v1: Layout) -> None:
    v1.make()
    names = ("pids.max", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
    assert [v1.file(name).read_text() for name in names] == ["5", "1048576", "1048576"]
    assert v1.group.remove()


def test_a_kernel_without_swap_accounting_is_no_failure(layout: Layout) -> None:
    layout.file(
        "memory.memsw.limit_in_bytes" if layout.version == 1 else "memory.swap.max"
    ).unlink()
    layout.group.limit(memory_bytes=7, processes=1)
    limit = layout.file("memory.limit_in_bytes" if layout.version == 1 else "memory.max")
    assert limit.read_text().startswith("7")


def test_a_memory_limit_that_cannot_be_set_is_a_failure(v1: Layout) -> None:
    v1.make()
    v1.file("memory.limit_in_bytes").unlink()
    v1.file("memory.limit_in_bytes").mkdir()
    with pytest.raises(SandboxUnavailable) as caught:
        v1.group.limit(memory_bytes=7, processes=1)
    assert caught.value.step == "memory limit"


def test_a_name_taken_already_is_not_taken_over(layout: Layout) -> None:
    with pytest.raises(FileExistsError):
        layout.group.make(memory_bytes=1, processes=1)


# ── counters ──


def test_counters_are_read_in_the_units_they_are_told_in(layout: Layout) -> None:
    assert layout.group.cpu_us() == 1234
    assert layout.group.oom_kills() == 2
    assert layout.group.peak_bytes() == 4096


def test_counters_are_read_anew(layout: Layout) -> None:
    name, text = (
        ("cpuacct.usage", "9000\n") if layout.version == 1 else ("cpu.stat", "usage_usec 9")
    )
    layout.file(name).write_text(text)
    assert layout.group.cpu_us() == 9


def test_what_an_older_kernel_does_not_count_is_not_known(v2: Layout) -> None:
    v2.make()
    v2.file("memory.peak").unlink()
    assert v2.group.peak_bytes() is None
    v2.file("memory.events").write_text("low 0\nhigh 0\n")
    assert v2.group.oom_kills() == 0
    assert v2.group.remove()


# ── processes ──


def test_cgroup_procs_is_open_once_for_each_hierarchy(layout: Layout) -> None:
    fds = layout.group.procs()
    assert len(fds) == (3 if layout.version == 1 else 1)
    for fd in fds:
        os.write(fd, b"7")
        os.close(fd)
    assert [path.read_text() for path in layout.procs()] == ["7"] * len(fds)


def test_the_processes_in_it_are_those_of_every_hierarchy(layout: Layout) -> None:
    for number, path in enumerate(layout.procs()):
        path.write_text(f"{number + 10}\n11\n0\n")  # 0: of a pid namespace that is not in sight
    assert layout.group.pids() == {10, 11} | ({12} if layout.version == 1 else set())


def test_v2_is_killed_by_its_file(v2: Layout) -> None:
    v2.make()
    v2.group.kill()
    assert v2.file("cgroup.kill").read_text() == "1"
    assert v2.group.remove()


def test_v1_is_killed_process_by_process(v1: Layout) -> None:
    v1.make()
    sleeper = subprocess.Popen(["/bin/sleep", "60"])
    for path in v1.procs():
        path.write_text(f"{sleeper.pid}\n")
    v1.group.kill()
    assert sleeper.wait(5) == -signal.SIGKILL
    v1.group.kill()  # it is gone by now: no error
    for path in v1.procs():
        path.write_text("")
    assert v1.group.remove()


def test_remove_says_whether_something_is_left_and_may_be_repeated(layout: Layout) -> None:
    layout.procs()[0].write_text("1\n")
    assert not layout.group.remove()
    layout.procs()[0].write_text("")
    assert layout.group.remove()
    assert layout.group.remove()
    layout.group.kill()
    assert layout.group.pids() == set()


# ── finding the hierarchies ──


def mounted(monkeypatch: pytest.MonkeyPatch, *mounts: tuple[Path, str, str]) -> None:
    lines = [(str(point), kind, set(options.split(","))) for point, kind, options in mounts]
    monkeypatch.setattr(cgroup, "_mount_lines", lambda: iter(lines))


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
