"""Control groups on directories that look like the kernel's: what is written where, what is read.

The kernel's own part (that the limits bite, that v1 wants them in order) is tried on the real
hierarchies in ``tests/integration/test_native_cgroup.py``.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.sandbox.hierarchies import imitate

from code_executor.errors import SandboxUnavailable
from code_executor.sandbox import group
from code_executor.sandbox.group import Group, Mounts


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    imitate(monkeypatch)


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
        self.same = Group(mounts, {name: top / "box" for name, top in self._tops.items()})

    def make(self) -> Group:
        self.group.make(memory_bytes=1 << 20, processes=5)
        return self.group

    def file(self, name: str) -> Path:
        found = [top / "box" / name for top in self._tops.values()]
        return next((path for path in found if path.exists()), found[0])

    def procs(self) -> list[Path]:
        return [top / "box" / "cgroup.procs" for top in dict.fromkeys(self._tops.values())]

    def joined(self) -> list[Path]:
        name = "tasks" if self.version == 1 else "cgroup.procs"
        return [path.with_name(name) for path in self.procs()]


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


def test_a_kernel_that_does_not_count_refused_processes_counts_none(layout: Layout) -> None:
    layout.file("pids.events").unlink()
    assert layout.group.refused_processes() == 0


# ── yielding ──


def test_it_yields_and_has_its_share_again(v2: Layout) -> None:
    group = v2.make()
    idle = v2.file("cpu.idle")
    group.yields(False)  # as it is already
    assert idle.read_text() == "0\n"
    group.yields(True)
    assert idle.read_text()[0] == "1"
    group.close_most()
    group.yields(False)
    assert idle.read_text()[0] == "0"
    assert group.remove()


def test_on_v1_it_yields_and_is_joined_where_there_is_a_cpu_hierarchy(tmp_path: Path) -> None:
    tops = {name: tmp_path / name for name in ("memory", "pids", "cpuacct", "cpu")}
    for top in tops.values():
        os.mkdir(top)
    group = Group(Mounts(1, tops), {name: top / "box" for name, top in tops.items()})
    group.make(memory_bytes=1 << 20, processes=5)
    group.yields(True)
    assert (tops["cpu"] / "box/cpu.idle").read_text()[0] == "1"
    assert str(tops["cpu"] / "box/cgroup.procs") in group.files("cgroup.procs")
    assert len(group.procs()) == 4
    assert group.remove()
    assert not (tops["cpu"] / "box").exists()


def test_without_a_cpu_hierarchy_nothing_yields_and_nothing_fails(v1: Layout) -> None:
    group = v1.make()
    group.yields(True)
    assert len(group.procs()) == 3
    assert group.remove()


def test_a_kernel_that_cannot_have_it_yield_is_no_failure(v2: Layout) -> None:
    group = v2.make()
    v2.file("cpu.idle").unlink()
    group.yields(True)
    group.yields(False)
    assert group.remove()


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


def test_limits_that_were_set_by_half_are_set_anew(v2: Layout) -> None:
    v2.make()
    v2.file("memory.max").unlink()
    v2.file("memory.max").mkdir()
    with pytest.raises(OSError, match="directory"):
        v2.group.limit(memory_bytes=7, processes=9)
    v2.file("memory.max").rmdir()
    v2.file("memory.max").touch()
    v2.group.limit(memory_bytes=1048576, processes=5)
    assert v2.file("pids.max").read_text() == "5"
    assert v2.group.remove()


def test_a_kernel_without_swap_accounting_is_no_failure(layout: Layout) -> None:
    layout.file(
        "memory.memsw.limit_in_bytes" if layout.version == 1 else "memory.swap.max"
    ).unlink()
    layout.group.limit(memory_bytes=7, processes=1)
    limit = layout.file("memory.limit_in_bytes" if layout.version == 1 else "memory.max")
    assert limit.read_text().startswith("7")


def _refuse_memory(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    write = group.write_control

    def refuse(path: str, text: str) -> None:
        if "/memory." in path:
            raise OSError(number, os.strerror(number))
        write(path, text)

    monkeypatch.setattr(group, "write_control", refuse)


def test_a_memory_limit_below_what_is_used_is_a_failure(
    v1: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    v1.make()
    _refuse_memory(monkeypatch, errno.EBUSY)
    with pytest.raises(SandboxUnavailable) as caught:
        v1.group.limit(memory_bytes=7, processes=1)
    assert caught.value.step == "memory limit"


def test_what_else_keeps_a_memory_limit_from_being_set_is_told_as_it_is(
    v1: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    v1.make()
    _refuse_memory(monkeypatch, errno.EMFILE)
    with pytest.raises(OSError, match="files"):
        v1.group.limit(memory_bytes=7, processes=1)


def test_a_name_taken_already_is_not_taken_over(layout: Layout) -> None:
    with pytest.raises(FileExistsError):
        layout.same.make(memory_bytes=1, processes=1)


# ── serving again ──


def _used(layout: Layout) -> Path:
    return layout.file("memory.usage_in_bytes" if layout.version == 1 else "memory.current")


def _peak(layout: Layout) -> Path:
    return layout.file("memory.max_usage_in_bytes" if layout.version == 1 else "memory.peak")


def test_an_empty_group_serves_again_with_a_peak_of_its_own(layout: Layout) -> None:
    assert layout.group.recycle()
    assert _peak(layout).read_text().startswith("0")
    layout.group.make(memory_bytes=9, processes=4)
    assert layout.file("pids.max").read_text().startswith("4")


def test_a_group_that_is_still_charged_for_much_does_not_serve_again(layout: Layout) -> None:
    _used(layout).write_text(f"{group.RESIDUE_MAX_BYTES + 1}\n")
    assert not layout.group.recycle()


def test_a_group_whose_peak_cannot_be_reset_does_not_serve_again(
    v2: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    v2.make()
    opened = os.open

    def refuse(path: str, flags: int) -> int:
        if path.endswith("memory.peak") and flags & os.O_RDWR:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return opened(path, flags)

    monkeypatch.setattr(os, "open", refuse)
    assert v2.group.peak_bytes() == 4096
    assert not v2.group.recycle()
    assert v2.group.remove()


def test_a_group_with_a_process_in_it_is_not_empty(layout: Layout) -> None:
    assert layout.group.empty()
    layout.file("pids.current").write_text("1\n")
    assert not layout.group.empty()
    layout.file("pids.current").write_text("0\n")


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


def test_where_it_is_joined_is_open_once_for_each_hierarchy(layout: Layout) -> None:
    fds = layout.group.procs()
    assert len(fds) == (3 if layout.version == 1 else 1)
    for fd in fds:
        os.write(fd, b"7")
    assert layout.group.procs() == fds
    assert [path.read_text() for path in layout.joined()] == ["7"] * len(fds)


def test_v1_is_joined_without_the_lock_that_stops_all_forks(v1: Layout) -> None:
    v1.make()
    names = {os.path.basename(os.readlink(f"/proc/self/fd/{fd}")) for fd in v1.group.procs()}
    assert names == {"tasks"}
    assert v1.group.remove()


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
