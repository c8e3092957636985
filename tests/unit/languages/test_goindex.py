"""The Go index and the compile step, run as plain processes with the host's Go."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from code_executor.languages import goindex
from code_executor.languages.goindex import GoIndexError, build, find_go, importcfg, main

HELLO = 'package main\n\nimport "fmt"\n\nfunc main() { fmt.Println("hello") }\n'

needs_go = pytest.mark.skipif(
    not any(map(shutil.which, goindex.CANDIDATES)), reason="no Go below /usr"
)


def compiled(index: Path, work: Path) -> subprocess.CompletedProcess[str]:
    env = {"PATH": "/usr/bin:/bin", "HOME": str(work.parent), "TMPDIR": str(work.parent)}
    return subprocess.run(
        ["/bin/sh", index / "build.sh"], cwd=work, env=env, capture_output=True, text=True
    )


def run(work: Path) -> str:
    return subprocess.run([work / ".bin/main"], capture_output=True, text=True, check=True).stdout


def test_importcfg_hides_what_only_the_standard_library_may_import() -> None:
    packages = {"fmt": "/f.a", "internal/abi": "/i.a", "vendor/x": "/v.a", "net/internal/y": "/y.a"}
    assert importcfg(packages, internal=False) == "packagefile fmt=/f.a\n"
    assert importcfg(packages, internal=True).count("packagefile") == 4


def test_no_go_is_a_message_with_the_command_that_helps() -> None:
    with pytest.raises(GoIndexError, match="apt-get install golang-go"):
        find_go(["/nonexistent/go"])


def test_the_command_line_says_why_it_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "index"), "--go", "/bin/false"]) == 1
    assert "/bin/false version failed" in capsys.readouterr().err


@needs_go
def test_a_second_build_has_nothing_to_do(index: Path) -> None:
    assert build(index, find_go(), inside=str(index)) is False


@needs_go
def test_a_program_of_the_standard_library_takes_the_quick_way(index: Path, work: Path) -> None:
    (work / "main.go").write_text(HELLO)
    without_go = work.parent / "index"
    shutil.copytree(index, without_go, symlinks=True, ignore=shutil.ignore_patterns("cache"))
    (without_go / "bin" / "go").unlink()
    assert compiled(without_go, work).returncode == 0
    assert run(work) == "hello\n"
    assert sorted(path.name for path in work.iterdir()) == [".bin", "main.go"]


@needs_go
def test_a_package_that_cgo_touches_comes_from_the_cache(index: Path, work: Path) -> None:
    (work / "main.go").write_text(
        'package main\n\nimport ("fmt"; "net/http")\n\nfunc main() { fmt.Print(http.StatusOK) }\n'
    )
    assert compiled(index, work).returncode == 0
    assert run(work) == "200"


def packages(table: Path) -> dict[str, Path]:
    pairs = (
        line.removeprefix("packagefile ").split("=") for line in table.read_text().splitlines()
    )
    return {path: Path(file) for path, file in pairs}


@needs_go
def test_the_linker_reads_common_packages_without_debug_information(index: Path) -> None:
    seen, linked = packages(index / "compile.cfg"), packages(index / "link.cfg")
    assert linked["fmt"].stat().st_size < 0.8 * seen["fmt"].stat().st_size
    assert linked["net/http"] == seen["net/http"]


@needs_go
def test_a_program_with_settings_of_the_runtime_is_left_to_go_build(
    index: Path, work: Path
) -> None:
    (work / "main.go").write_text(f"//go:debug x=1\n{HELLO}")
    without_go = work.parent / "index"
    shutil.copytree(index, without_go, symlinks=True, ignore=shutil.ignore_patterns("cache"))
    (without_go / "bin" / "go").unlink()
    assert compiled(without_go, work).returncode == 127
    assert not (work / ".bin/main").exists()


@needs_go
def test_errors_read_as_go_build_prints_them(index: Path, work: Path) -> None:
    (work / "main.go").write_text('package main\n\nimport "os"\n\nfunc main() {\n\tx := 1\n}\n')
    done = compiled(index, work)
    assert done.returncode != 0
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0] == "# command-line-arguments"
    assert lines[1].startswith("./main.go:3:8: ")
    assert not (work / ".bin/main").exists()


@needs_go
def test_an_internal_package_is_refused_as_go_build_refuses_it(index: Path, work: Path) -> None:
    (work / "main.go").write_text('package main\n\nimport _ "internal/abi"\n\nfunc main() {}\n')
    assert "use of internal package internal/abi not allowed" in compiled(index, work).stderr


@needs_go
def test_further_files_belong_to_the_program_and_tests_do_not(index: Path, work: Path) -> None:
    (work / "main.go").write_text(HELLO.replace('"hello"', "word()"))
    (work / "word.go").write_text('package main\n\nfunc word() string { return "two files" }\n')
    (work / "word_test.go").write_text("package main\n\nbroken\n")
    assert compiled(index, work).returncode == 0
    assert run(work) == "two files\n"


@needs_go
def test_a_module_of_several_packages_is_built_with_go_build(index: Path, work: Path) -> None:
    (work / "go.mod").write_text("module example\n\ngo 1.19\n")
    (work / "word").mkdir()
    (work / "word/word.go").write_text('package word\n\nfunc Say() string { return "module" }\n')
    (work / "main.go").write_text(
        HELLO.replace('"fmt"', '"fmt"\nimport "example/word"').replace('"hello"', "word.Say()")
    )
    assert compiled(index, work).returncode == 0
    assert run(work) == "module\n"
