"""Builds the native parts with the host's C compiler: the launcher with init, the zygote's library
and Node.js's.

``python -m code_executor.sandbox.build`` is called by the set-up; :func:`binaries` gives the paths
and says what to do when they are missing or older than their sources. The launcher is linked
statically, so that it needs nothing of the root it runs in.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from code_executor.errors import HostUnfit

HERE = Path(__file__).parent
SOURCES = HERE / "init"
BUILD = HERE / "_build"

INIT_SOURCES = (
    "proto",
    "become",
    "ahead",
    "identity",
    "stage",
    "collect",
    "program",
    "setup",
    "ending",
    "job",
    "init",
)
LAUNCHER = (*INIT_SOURCES, "signals", "contained", "network", "launcher")
ZYGOTE = (
    "proto",
    "become",
    "ahead",
    "identity",
    "program",
    "hugepages",
    "zygote",
    "quiet",
    "watchers",
    "arenas",
    "cpython",
)

WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wconversion", "-Wformat=2")
HARDENING = ("-D_FORTIFY_SOURCE=2", "-fstack-protector-strong", "-fno-strict-aliasing")
SHARED = ("-shared", "-fPIC", "-Wl,-z,now")
COMMON = ("-std=c11", "-D_GNU_SOURCE", "-O2", *WARNINGS, *HARDENING)
PARTS = {
    "launcher": (LAUNCHER, ("-static",)),
    "zygote.so": (ZYGOTE, SHARED),
    "node.so": (("node_end",), (*SHARED, "-Wl,-z,nodelete")),
}
"""What is built: from which sources, with which flags beside the common ones."""


@dataclass(frozen=True, slots=True)
class Binaries:
    """Where the built parts are."""

    launcher: Path
    zygote: Path
    node: Path


def sources_digest() -> str:
    """SHA-256 over all C sources and how they are built: what a build is valid for."""
    digest = hashlib.sha256(repr((COMMON, PARTS)).encode())
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in {".c", ".h"}:
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def binaries() -> Binaries:
    """The built parts.

    Raises:
        HostUnfit: not built, or built from other sources.
    """
    stamp = BUILD / "stamp"
    if not stamp.exists() or stamp.read_text() != sources_digest():
        raise HostUnfit(
            "the sandbox's native parts are not built",
            fix=f"{sys.executable} -m code_executor.sandbox.build",
        )
    return Binaries(BUILD / "launcher", BUILD / "zygote.so", BUILD / "node.so")


def _compile(compiler: str, target: Path, names: tuple[str, ...], *flags: str) -> None:
    sources = [str(SOURCES / f"{name}.c") for name in names]
    partial = target.with_suffix(".partial")
    subprocess.run([compiler, *COMMON, *flags, "-o", str(partial), *sources], check=True)
    partial.replace(target)


def build() -> Binaries:
    """Compile whatever is out of date.

    Raises:
        HostUnfit: there is no C compiler.
        subprocess.CalledProcessError: the compiler refused; its words are on stderr.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise HostUnfit("there is no C compiler", fix="apt-get install gcc libc6-dev")
    BUILD.mkdir(exist_ok=True)
    stamp = BUILD / "stamp"
    if not stamp.exists() or stamp.read_text() != sources_digest():
        for name, (sources, flags) in PARTS.items():
            _compile(compiler, BUILD / name, sources, *flags)
        stamp.write_text(sources_digest())
    return binaries()


if __name__ == "__main__":
    built = build()
    sys.stdout.write(f"built {built.launcher.name}, {built.zygote.name} and {built.node.name}\n")
