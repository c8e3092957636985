"""The build: compiled when the sources changed, refused when it is not from these sources."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest

from code_executor.errors import HostUnfit
from code_executor.sandbox import build

PT_INTERP = 3


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sources with a build directory of its own."""
    shutil.copytree(build.SOURCES, tmp_path / "init")
    monkeypatch.setattr(build, "SOURCES", tmp_path / "init")
    monkeypatch.setattr(build, "BUILD", tmp_path / "_build")
    return tmp_path


def test_what_is_not_built_says_how_to_build_it(place: Path) -> None:
    with pytest.raises(HostUnfit) as caught:
        build.binaries()
    assert "code_executor.sandbox.build" in caught.value.fix


def test_the_sources_compile_without_a_warning_and_the_result_is_kept(place: Path) -> None:
    built = build.build()
    assert built.launcher.read_bytes()[:4] == b"\x7fELF"
    assert built.zygote.read_bytes()[:4] == b"\x7fELF"
    assert built.node.read_bytes()[:4] == b"\x7fELF"
    before = built.launcher.stat().st_mtime_ns
    assert build.build() == built
    assert built.launcher.stat().st_mtime_ns == before
    assert not list(place.glob("_build/*.partial"))


def test_the_launcher_needs_nothing_of_the_root_it_runs_in(place: Path) -> None:
    assert PT_INTERP not in segment_types(build.build().launcher)


def test_a_dynamic_program_would_be_told(tmp_path: Path) -> None:
    assert PT_INTERP in segment_types(Path(shutil.which("env") or ""))


def segment_types(elf: Path) -> set[int]:
    """The types of a 64-bit ELF file's program headers (elf(5))."""
    content = elf.read_bytes()
    (at,) = struct.unpack_from("<Q", content, 32)
    size, count = struct.unpack_from("<HH", content, 54)
    return {struct.unpack_from("<I", content, at + n * size)[0] for n in range(count)}


@pytest.mark.parametrize("change", ["edit", "add"])
def test_a_build_of_other_sources_is_refused(place: Path, change: str) -> None:
    (place / "_build").mkdir()
    (place / "_build" / "stamp").write_text(build.sources_digest())
    build.binaries()
    changed = place / "init" / ("proto.c" if change == "edit" else "new.h")
    with changed.open("a") as file:
        file.write("/* changed */\n")
    with pytest.raises(HostUnfit):
        build.binaries()


def test_a_build_from_another_list_of_sources_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "_build").mkdir()
    (place / "_build" / "stamp").write_text(build.sources_digest())
    build.binaries()
    monkeypatch.setitem(build.PARTS, "node.so", (("node_end", "signals"), build.SHARED))
    with pytest.raises(HostUnfit):
        build.binaries()


def test_a_host_without_a_compiler_says_what_to_install(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(place))
    with pytest.raises(HostUnfit) as caught:
        build.build()
    assert caught.value.fix.startswith("apt-get install")
