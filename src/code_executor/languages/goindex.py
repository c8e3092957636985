"""Builds the export index of Go's standard library, so that a run compiles only its own code.

``python -m code_executor.languages.goindex DIRECTORY`` fills a directory that sandboxes see,
read-only, as ``/opt/go``::

    bin/go         -> the host's go command        cache/       go's build cache, for ``go build``
    tool           -> its compiler and linker      build.sh     the compile step of a run
    compile.cfg    importable packages             version      what it was built from; last
    link.cfg       all packages, the common ones without debug information
    ahead.sh, ahead/  the compile step, started before the run is known (goahead.py)

Since Go 1.20 a distribution has no compiled standard library at all, and building it takes more
processor time than a run may use; before, only what cgo touches is missing. It is made beside
its final place and renamed, so an interrupted build leaves the old one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

from code_executor.languages import goahead

INSIDE = "/opt/go"
CANDIDATES = ("/usr/bin/go", "/usr/local/bin/go", "/usr/local/go/bin/go", "/usr/lib/go/bin/go")
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/nonexistent",
    "GOPROXY": "off",
    "GOTOOLCHAIN": "local",
    "CGO_ENABLED": "0",
}
# What most programs import: the linker reads these again for each, and half of it would be for
# a debugger. They are compiled once more, because ``go build`` looks for the others.
COMMON = (
    "bufio",
    "bytes",
    "container/heap",
    "container/list",
    "context",
    "encoding/json",
    "errors",
    "fmt",
    "io",
    "math",
    "math/big",
    "math/rand",
    "os",
    "regexp",
    "sort",
    "strconv",
    "strings",
    "sync",
    "text/tabwriter",
    "time",
    "unicode/utf8",
)
_LIST = "{{if .Export}}{{.ImportPath}}={{.Export}}{{end}}"


class GoIndexError(RuntimeError):
    """The index cannot be built; the message says why and what to do."""


def find_go(candidates: Sequence[str] = CANDIDATES) -> str:
    """The go command; only places that a sandbox sees (below ``/usr``) count.

    Raises:
        GoIndexError: there is none.
    """
    for path in candidates:
        if os.access(path, os.X_OK):
            return path
    raise GoIndexError("no go command below /usr; install it: apt-get install golang-go")


def build(directory: Path, go: str, *, inside: str = INSIDE) -> bool:
    """Bring ``directory``, which runs see as ``inside``, up to date with ``go``.

    Whether anything had to be built.

    Raises:
        GoIndexError: the go command fails.
    """
    scripts = {"build.sh": _shipped("go_build.sh"), "ahead.sh": _shipped("go_ahead/ahead.sh")}
    stamp = f"{_go(go, 'version')} {go} {inside} {_digest(scripts)}\n"
    if _read(directory / "version") == stamp:
        return False
    fresh = directory.with_name(directory.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    (fresh / "cache").mkdir(parents=True)
    for name, text in scripts.items():
        (fresh / name).write_text(text)
    _fill(fresh, go, inside)
    missing = goahead.add(fresh, go, _go, inside=inside)
    if missing:
        sys.stderr.write(f"runs compile without tools that wait: {missing}\n")
    (fresh / "version").write_text(stamp)
    _readable(fresh)
    shutil.rmtree(directory, ignore_errors=True)
    fresh.rename(directory)
    return True


def importcfg(packages: Mapping[str, str], *, internal: bool) -> str:
    """The compiler's table of packages, from import paths to export files.

    Without ``internal``, those are left out that only the standard library may import and
    ``go build`` would refuse.
    """
    return "".join(
        f"packagefile {path}={packages[path]}\n"
        for path in sorted(packages)
        if internal or not _is_internal(path)
    )


def _is_internal(path: str) -> bool:
    parts = path.split("/")
    return "internal" in parts or parts[0] == "vendor"


def _fill(fresh: Path, go: str, inside: str) -> None:
    cache = str((fresh / "cache").resolve())
    packages = _exports(go, "std", cache=cache, inside=inside)
    bare = _exports(go, "-gcflags=all=-dwarf=false", *COMMON, cache=cache, inside=inside)
    (fresh / "compile.cfg").write_text(importcfg(packages, internal=False))
    (fresh / "link.cfg").write_text(importcfg(packages | bare, internal=True))
    (fresh / "bin").mkdir()
    (fresh / "bin" / "go").symlink_to(os.path.realpath(go))
    (fresh / "tool").symlink_to(_go(go, "env", "GOTOOLDIR"))


def _exports(go: str, *what: str, cache: str, inside: str) -> dict[str, str]:
    """Import paths and export files, as runs see them, of packages and all they import."""
    packages: dict[str, str] = {}
    for line in _go(go, "list", "-export", "-deps", "-f", _LIST, *what, cache=cache).splitlines():
        path, separator, file = line.partition("=")
        if separator:
            packages[path] = file.replace(cache, f"{inside}/cache", 1)
    return packages


def _go(go: str, *args: str, cache: str = "off") -> str:
    """What ``go ARGS`` prints, in the environment that a sandbox gives it."""
    env = _ENVIRONMENT | {"GOCACHE": cache}
    try:
        done = subprocess.run([go, *args], env=env, capture_output=True, text=True, check=True)
    except subprocess.CalledProcessError as exc:
        raise GoIndexError(f"{go} {args[0]} failed: {exc.stderr.strip()[-2000:]}") from None
    return done.stdout.strip()


def _shipped(name: str) -> str:
    return (files("code_executor.languages") / name).read_text(encoding="utf-8")


def _digest(scripts: Mapping[str, str]) -> str:
    """Of all that an index is made with."""
    ours = ("goindex.py", "goahead.py", *goahead.SOURCES)
    parts = [*scripts.values(), *map(_shipped, ours)]
    return sha256("\0".join(parts).encode()).hexdigest()


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _readable(root: Path) -> None:
    """Sandboxes read it under another uid, whatever the umask of the one who builds it."""
    for path in (root, *root.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 0 when the index is there, 1 with a message when it cannot be."""
    parser = argparse.ArgumentParser(prog="python -m code_executor.languages.goindex")
    parser.add_argument("directory", type=Path, help="where to build it, seen as /opt/go inside")
    parser.add_argument("--go", help="the go command; found below /usr when not given")
    options = parser.parse_args(argv)
    try:
        built = build(options.directory, options.go or find_go())
    except (GoIndexError, OSError) as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    sys.stdout.write(f"{options.directory}: {'built' if built else 'up to date'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
