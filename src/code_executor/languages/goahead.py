"""Builds a compiler and a linker that can wait for the program: what ``/opt/go/ahead`` holds.

Theory of operation. Go's own sources of both are compiled with a few lines put in (``-overlay``;
the lines are in ``go_ahead/``), so they are of the same version and make the same. The compiler
waits when it is initialised; the linker when it has loaded the standard library's common packages
as well, which is most of its work. ``driver`` starts both and waits for the job of the run::

    init ── sh ahead.sh ─exec─ driver ── compile   initialised, waits for the names of the sources
                                    └─── link      has the libraries, waits for the program

The lines go to places that were found in Go 1.19 to 1.24. A version where such a place is missing
or not the only one, that does not compile, or whose program is not byte for byte that of the
ordinary tools has no such tools: :func:`add` says why, and runs compile as they did before.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

OWN = "go_ahead"
SOURCES = tuple(
    f"{OWN}/{name}" for name in ("driver.go", "wait.go", "compile.go", "link.go", "loader.go")
)
LOADED = ("fmt", "runtime")
"""With all they import. Nearly every program is made of these and more; one that is not is linked
as it was before."""
LIBRARY_LOOP = "\t// ctxt.Library grows during the loop, so not a range loop.\n"
LOAD = "\tctxt.loader.LoadSyms(ctxt.Arch)\n"
TIES = "\t\t\treturn si < sj"
RANKED = "\t\t\treturn loader.AheadRank(si) < loader.AheadRank(sj)"
ALL_SYMBOLS = "\tfor s := loader.Sym(1); s < loader.Sym(ldr.NSym()); s++ {\n"
LOAD_SOURCES = "noder.LoadPackage(flag.Args())"
ROOM = "\tl.objSyms = make([]objSym, 1, symSize)\n"
FIRST_HALF = re.compile(
    r"\tst := loadState\{\n.*?\n\t\}\n.*?st\.preloadSyms\(\S+, nonPkgDef\)\n\t\}\n", re.DOTALL
)
REFERENCES = re.compile(
    r"\tfor _, (\w+) := range l\.objs\[goObjStart:\] \{\n\t\tloadObjRefs\(l, (\S+), arch\)\n"
)
FIRST_LOOP = re.compile(
    r"\tfor _, \w+ := range l\.objs\[goObjStart:\] \{\n\t\tst\.preloadSyms\(\S+, pkgDef\)"
)
DEFINED = "\tcase pkgDef:\n\t\t// Defined package symbols cannot be dup to each other.\n"
# A library that came first may have declared what the program defines (main..inittask): the general
# rule further down joins the two.
DECLARED = (
    "\tcase pkgDef:\n"
    "\t\tif _, dup := l.symsByName[ver][name]; dup && aheadState != nil {\n\t\t\tbreak\n\t\t}\n"
)
AT_THREE = """\
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.execv("/usr/bin/sh", ["sh", sys.argv[2]])
"""
TRIAL = """package main

import (
	"fmt"
	"os"
	"sort"
	"strings"
)

type named interface{ Name() string }
type one struct{ n int }

func (o *one) Name() string { return fmt.Sprint("one ", o.n) }

var made = strings.Repeat("ab", 3)

func main() {
	words := strings.Fields("c b a " + made)
	sort.Strings(words)
	var n named = &one{len(words)}
	fmt.Println(words, n.Name(), fmt.Sprintf("%T %v", n, *n.(*one)))
	fmt.Fprintln(os.Stderr, "said")
	var none map[string]int
	none["x"] = 1
}
"""


class NotAhead(RuntimeError):
    """This Go has no tools that wait; the message says why."""


def add(index: Path, go: str, run: Callable[..., str], *, inside: str) -> str | None:
    """Put ``ahead`` into an ``index`` that is complete otherwise.

    ``run`` is the go command (``goindex``), ``inside`` where runs see the index. Why this Go cannot
    have it, or ``None``.
    """
    index = index.resolve()
    ahead = index / "ahead"
    work = index / "ahead.work"
    try:
        work.mkdir()
        ahead.mkdir()
        _build(work, ahead, go, run)
        (ahead / "packages").write_text(" ".join(LOADED))
        _try(work, index, f"{inside}/cache")
    except (NotAhead, OSError, RuntimeError, subprocess.SubprocessError) as exc:
        shutil.rmtree(ahead, ignore_errors=True)
        return str(exc)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return None


def patched(read: Callable[[str], str]) -> dict[str, str]:
    """The changed and the new files, by their path below Go's ``src``; ``read`` reads one there.

    Raises:
        NotAhead: a place is not there, or not the only one.
    """
    link, compiler = "cmd/link/internal", "cmd/compile/internal/gc"
    loader, ahead = _loader(read(f"{link}/loader/loader.go"))
    lib = _once(read(f"{link}/ld/lib.go"), LIBRARY_LOOP, "\taheadLoad(ctxt)\n" + LIBRARY_LOOP)
    wait = _own("wait.go")
    return {
        f"{link}/loader/loader.go": loader,
        f"{link}/loader/ahead.go": ahead,
        f"{link}/ld/lib.go": _once(
            lib, LOAD, f"\taheadJoin(ctxt)\n{LOAD}\tctxt.loader.AheadRanked()\n"
        ),
        f"{link}/ld/data.go": _once(read(f"{link}/ld/data.go"), TIES, RANKED),
        f"{link}/ld/typelink.go": _once(
            read(f"{link}/ld/typelink.go"),
            ALL_SYMBOLS,
            "\tfor _, s := range ldr.AheadSymbols() {\n",
        ),
        f"{link}/ld/ahead.go": _own("link.go"),
        f"{link}/ld/aheadwait.go": wait.replace("PACKAGE", "ld"),
        f"{compiler}/main.go": _once(
            read(f"{compiler}/main.go"), LOAD_SOURCES, "noder.LoadPackage(aheadFiles(flag.Args()))"
        ),
        f"{compiler}/ahead.go": _own("compile.go"),
        f"{compiler}/aheadwait.go": wait.replace("PACKAGE", "gc"),
    }


def _loader(text: str) -> tuple[str, str]:
    """The loader whose LoadSyms goes on where AheadSyms stopped, and the file with the latter."""
    head, start, rest = text.partition("func (l *Loader) LoadSyms(")
    body, end, tail = rest.partition("\n}\n")
    half, loop = FIRST_HALF.search(body), FIRST_LOOP.search(body)
    references = REFERENCES.search(body)
    if not (start and end and half and loop and references):
        raise NotAhead("the linker's LoadSyms is another")
    resumed = "\tif aheadState != nil {\n\t\tst = *aheadState\n\t}\n"
    fresh = _once(half[0], loop[0], resumed + loop[0]).replace("[goObjStart:]", "[aheadStart:]")
    body = _once(body, half[0], fresh)
    body = _once(body, ROOM, f"\tif aheadState == nil {{\n\t{ROOM}\t}}\n")
    of_all = "\tfor _, r := range aheadObjs {\n\t\tloadObjRefs(l, r, arch)\n"
    body = _once(body, references[0], of_all)
    first_half = half[0].replace("\tl.npkgsyms = l.NSym()\n", "")
    reader = "o" + references[2].removeprefix(references[1])  # o.r, or o itself
    own = _once(_own("loader.go"), "\t//LOADSYMS\n", first_half)
    own = _once(own, "READER", reader)
    return _once(head + start + body + end + tail, DEFINED, DECLARED), own


def _once(text: str, old: str, new: str) -> str:
    if text.count(old) != 1:
        raise NotAhead(f"the sources have {old.strip()[:60]!r} {text.count(old)} times")
    return text.replace(old, new)


def _own(name: str) -> str:
    return (files("code_executor.languages") / OWN / name).read_text(encoding="utf-8")


def _build(work: Path, ahead: Path, go: str, run: Callable[..., str]) -> None:
    root = Path(run(go, "env", "GOROOT"), "src")
    overlay = {}
    for path, text in patched(lambda path: (root / path).read_text(encoding="utf-8")).items():
        changed = work / path.replace("/", "_")
        changed.write_text(text)
        overlay[str(root / path)] = str(changed.resolve())
    table = work / "overlay.json"
    table.write_text(json.dumps({"Replace": overlay}))
    driver = work / "driver.go"
    driver.write_text(_own("driver.go"))
    options = ["-ldflags=-s -w"]
    cache = str(work / "cache")
    # What the index has compiled is used again, and nothing is added to it.
    shutil.copytree(ahead.parent / "cache", cache, copy_function=os.link)
    # Programs can read it: it does not say where it was made.
    run(go, "build", *options, "-trimpath", "-o", str(ahead / "driver"), str(driver), cache=cache)
    tools = ["link"]
    if run(go, "list", "-f", "{{.Stale}}", "cmd/compile/internal/ssa", cache=cache) == "false":
        tools.append("compile")  # since Go 1.20 it is not there compiled, and takes minutes
    for tool in tools:
        run(go, "build", *options, f"-overlay={table}", "-o", str(ahead / tool), f"cmd/{tool}",
            cache=cache)  # fmt: skip


def _try(work: Path, index: Path, cache: str) -> None:
    """Compile a program with them and with the ordinary tools: both have to make the same.

    Raises:
        NotAhead: they do not.
    """
    seen = [
        _compiled(_copy(work, index, script, beside, cache), script)
        # Without build.sh the driver has nowhere to fall back to.
        for script, beside in (("ahead.sh", ("ahead",)), ("build.sh", ("tool",)))
    ]
    if seen[0] != seen[1]:
        raise NotAhead("their program is another than that of the ordinary tools")


def _copy(work: Path, index: Path, script: str, beside: Sequence[str], cache: str) -> Path:
    """What ``script`` needs of the index, with tables of where the libraries are now."""
    home = work / "trial"  # the same for both, since its name is in the program
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    for name in (script, *beside):
        (home / name).symlink_to(index / name)
    for name in ("compile.cfg", "link.cfg"):
        table = (index / name).read_text()
        (home / name).write_text(table.replace(f"={cache}/", f"={index}/cache/"))
    return home


def _compiled(home: Path, script: str) -> bytes:
    """The program that ``script`` makes."""
    there = home / "work"
    there.mkdir()
    (there / "main.go").write_text(TRIAL)
    _compile(home / script, there)
    return (there / ".bin" / "main").read_bytes()


def _compile(script: Path, there: Path) -> None:
    """As init does: the job comes over descriptor 3.

    Raises:
        NotAhead: it failed.
    """
    env = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "TMPDIR": str(there)}
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"2\x000\0")
        ours.shutdown(socket.SHUT_WR)
        done = subprocess.run(
            [sys.executable, "-c", AT_THREE, str(theirs.fileno()), str(script)],
            cwd=there, env=env, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    if done.returncode:
        raise NotAhead(f"{script.name} failed: {done.stderr.strip()[-300:]}")
