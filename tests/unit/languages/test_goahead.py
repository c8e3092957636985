"""Tools that wait for the program: where their lines go, what they make, and what they leave."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from code_executor.languages import goahead, goindex
from code_executor.languages.goahead import AT_THREE, LIBRARY_LOOP, NotAhead, patched

USUAL = """package main

import (
	"encoding/json"
	"fmt"
	"os"
	"sort"
	"strings"
)

func main() {
	words := strings.Fields("b a")
	sort.Strings(words)
	json.NewEncoder(os.Stdout).Encode(map[string]any{"words": words})
	fmt.Printf("%T %v\\n", words, words)
}
"""
UNUSUAL = """package main

import (
	"container/ring"
	"fmt"
	"go/ast"
	"os"
	"text/template"
)

func main() {
	template.Must(template.New("t").Parse("{{.}} {{len .}}\\n")).Execute(os.Stdout, "hello")
	fmt.Println(ring.New(3).Len(), ast.IsExported("Name"))
	panic("the end")
}
"""
BROKEN = "package main\n\nfunc main() { undefined() }\n"

needs_go = pytest.mark.skipif(
    not any(map(shutil.which, goindex.CANDIDATES)), reason="no Go below /usr"
)


def source(path: str) -> str:
    """A file of the host's Go."""
    root = Path(os.path.realpath(goindex.find_go())).parents[1]
    return (root / "src" / path).read_text(encoding="utf-8")


@contextmanager
def waiting(index: Path, work: Path) -> Iterator[tuple[socket.socket, subprocess.Popen[str]]]:
    """The compile step, started as init starts it, and the other end of its descriptor 3."""
    ours, theirs = socket.socketpair()
    env = {"PATH": "/usr/bin:/bin", "HOME": str(work.parent), "TMPDIR": str(work.parent)}
    with (
        ours,
        subprocess.Popen(
            [sys.executable, "-c", AT_THREE, str(theirs.fileno()), str(index / "ahead.sh")],
            cwd=work, env=env, text=True, pass_fds=[theirs.fileno()],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as process,
    ):  # fmt: skip
        theirs.close()
        assert ours.recv(1) == b"\0"
        yield ours, process


def compiled(index: Path, work: Path) -> tuple[int, str]:
    """How compiling ends, and what it says; the sources come when it waits already."""
    with waiting(index, work) as (job, process):
        job.sendall(b"1\0argument\0NAME=value\0")
        job.shutdown(socket.SHUT_WR)
        out, err = process.communicate()
    return process.returncode, out + err


def without(index: Path, name: str, place: Path) -> Path:
    """The index without one of its files."""
    place.mkdir()
    for each in index.iterdir():
        if each.name != name:
            (place / each.name).symlink_to(each)
    return place


def ends(work: Path) -> tuple[str, str, int]:
    done = subprocess.run([work / ".bin/main"], capture_output=True, text=True)
    return done.stdout, done.stderr, done.returncode


@needs_go
def test_this_go_has_tools_that_wait(index: Path) -> None:
    assert os.access(index / "ahead/driver", os.X_OK)
    assert os.access(index / "ahead/link", os.X_OK)


@needs_go
def test_nothing_tells_where_they_were_made(index: Path) -> None:
    """Programs can read them."""
    for tool in (index / "ahead").iterdir():
        assert b"ahead.work" not in tool.read_bytes(), tool.name


@needs_go
@pytest.mark.parametrize("code", [USUAL, UNUSUAL], ids=["common packages", "other packages"])
def test_the_program_is_what_the_ordinary_tools_make(index: Path, work: Path, code: str) -> None:
    for_ahead = without(index, "build.sh", work.parent / "no-build")  # nowhere to fall back to
    (work / "main.go").write_text(code)
    assert compiled(for_ahead, work) == (0, "")
    ahead = (work / ".bin/main").read_bytes()
    subprocess.run(["/bin/sh", index / "build.sh"], cwd=work, check=True)
    assert ahead == (work / ".bin/main").read_bytes()
    assert not list(work.parent.glob(".go*"))


@needs_go
def test_further_files_are_of_the_program_and_tests_are_not(index: Path, work: Path) -> None:
    (work / "main.go").write_text("package main\n\nfunc main() { println(other()) }\n")
    (work / "other.go").write_text('package main\n\nfunc other() string { return "o" }\n')
    (work / "main_test.go").write_text("package wrong\n")
    (work / ".hidden.go").write_text("package wrong\n")
    assert compiled(index, work) == (0, "")
    assert ends(work) == ("", "o\n", 0)


@needs_go
def test_what_they_cannot_do_is_left_to_go_build(index: Path, work: Path) -> None:
    (work / "main.go").write_text(BROKEN)
    code, said = compiled(index, work)
    assert code != 0
    assert said == "# command-line-arguments\n./main.go:3:15: undefined: undefined\n"
    (work / "main.go").write_text('package main\n\nimport "m/x"\n\nfunc main() { println(x.X) }\n')
    (work / "go.mod").write_text("module m\n")
    (work / "x").mkdir()
    (work / "x/x.go").write_text("package x\n\nconst X = 1\n")
    assert compiled(index, work) == (0, "")
    assert ends(work) == ("", "1\n", 0)


@needs_go
def test_a_program_of_less_than_is_loaded_is_linked_as_before(index: Path, work: Path) -> None:
    (work / "main.go").write_text('package main\n\nfunc main() { println("small") }\n')
    assert compiled(index, work) == (0, "")
    assert ends(work) == ("", "small\n", 0)


@needs_go
def test_where_there_are_none_the_script_waits(index: Path, work: Path) -> None:
    plain = without(index, "ahead", work.parent / "plain")
    (work / "main.go").write_text(USUAL)
    assert compiled(plain, work) == (0, "")
    assert ends(work)[2] == 0


@needs_go
@pytest.mark.parametrize("missing", ["ahead", "nothing"])
def test_a_job_that_never_comes_ends_it(index: Path, work: Path, missing: str) -> None:
    place = without(index, missing, work.parent / "place")
    with waiting(place, work) as (job, process):
        job.shutdown(socket.SHUT_WR)
        assert process.wait(60) == 0
    assert not (work / ".bin/main").exists() or not (work / ".bin/main").stat().st_size


@needs_go
def test_a_go_whose_sources_are_others_has_none() -> None:
    assert len(patched(source)) == 10
    with pytest.raises(NotAhead, match="0 times"):
        patched(lambda path: source(path).replace(LIBRARY_LOOP, ""))
    with pytest.raises(NotAhead, match="2 times"):
        patched(lambda path: source(path).replace(LIBRARY_LOOP, 2 * LIBRARY_LOOP))
    with pytest.raises(NotAhead, match="LoadSyms"):
        patched(lambda path: source(path).replace("nonPkgDef)", "another)"))


@needs_go
def test_another_program_than_that_of_the_ordinary_tools_refuses_them(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(_work: Path, ahead: Path, *_: object) -> None:
        (ahead / "driver").write_text("#!/bin/sh\nmkdir -p .bin\necho other > .bin/main\n")
        (ahead / "driver").chmod(0o755)

    place = without(index, "ahead", tmp_path / "index")
    monkeypatch.setattr(goahead, "_build", wrong)
    said = goahead.add(place, "go", lambda *_: "", inside=str(index))
    assert said is not None
    assert "another" in said
    assert not (place / "ahead").exists()
