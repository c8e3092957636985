"""Init's C, built with sanitizers and fuzzed.

``tests/c/fuzz_frames.c`` feeds init's frame handlers with seeds made here and changed at random: by
libFuzzer where clang has it, else by a loop that does the same turns on every machine. It runs as
PID 1 of a pid namespace, with a small root of its own. ``FUZZ_SECONDS`` bounds each.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.c.build import OPTIONS, C, compiled, sources
from tests.c.driver import shell

from code_executor.sandbox import frames
from code_executor.sandbox.frames import Kind, frame

FUZZ_SECONDS = int(os.environ.get("FUZZ_SECONDS", "8"))
FUZZ_TURNS = 200_000


def conversations() -> dict[str, bytes]:
    """The host's side of conversations that go well, and of some that nearly do."""
    run = shell("x", "y")
    kill, stdin = frame(Kind.KILL), frame(Kind.STDIN, b"in")
    files = b"".join(
        b"".join(frames.staged(path, b"bytes"))
        for path in ("main.py", "outputs/a", "outputs/d/e/f")
    )
    get = frame(Kind.GET, b"outputs/a") + frame(Kind.GET, b"d/e/f") + frame(Kind.GET, b"a")
    deep = "/".join(["outputs", *"abcdefghijklmnopqrstuvwxyz" * 2])
    long = "/".join(["outputs", *["n" * 250] * 5])
    hostile = [
        b"/etc/passwd",
        b"../up",
        b"a/../b",
        b"a//b",
        b"a/.",
        b"n" * 256,
        b"a\0b",
        b"a/b/",
        b"n/" * 2048,
    ]
    return {
        "plain": files + stdin + run + kill + get,
        "twice": files + run + kill + run + kill + get,
        "deep": b"".join(frames.staged(deep, b"x")) + run + kill,
        "long": b"".join(frames.staged(long, b"x")) + run + kill,
        "built": files + run + kill + frames.built(".bin/main", 9) + frames.built("../x", 2**31),
        "executable": b"".join(frames.staged("x", b"x", executable=True)) + run + kill,
        "get": files + run + kill + frame(Kind.GET, b"d") + frame(Kind.GET, b"../main.py"),
        "strings": frames.program(warm=False, listing=False, argv=["a", ""] * 20, env=["A=b"] * 20),
        **{f"path{n}": frame(Kind.FILE, path) + run for n, path in enumerate(hostile)},
    }


def write_seeds(directory: Path) -> list[Path]:
    directory.mkdir()
    for name, said in conversations().items():
        (directory / name).write_bytes(said)
    return sorted(directory.iterdir())


def fuzzer(target: Path, *more: str | Path, compiler: str) -> Path:
    replaced = ("-Dkill=fuzz_kill", "-Dwritev=fuzz_writev")
    real = sources("proto", "identity", "job", "stage", "collect")
    return compiled(
        target, *replaced, C / "fuzz_frames.c", C / "place.c", *more, *real, compiler=compiler
    )


def fuzz(tmp_path: Path, *command: str | Path, keep: int = -1) -> None:
    place = tmp_path / "place"
    place.mkdir()
    done = subprocess.run(
        command,
        env={**OPTIONS, "FUZZ_PLACE": str(place)},
        pass_fds=() if keep < 0 else (keep,),
        capture_output=True,
        timeout=FUZZ_SECONDS + 60,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-4000:]


def test_the_frame_handlers_survive_changed_conversations(tmp_path: Path) -> None:
    seeds = write_seeds(tmp_path / "seeds")
    target = fuzzer(tmp_path / "fuzz", C / "standalone.c", compiler="cc")
    fuzz(tmp_path, target, "1", str(FUZZ_TURNS), str(FUZZ_SECONDS), *seeds)


@pytest.mark.skipif(shutil.which("clang") is None, reason="libFuzzer comes with clang")
def test_the_frame_handlers_survive_what_libfuzzer_finds(tmp_path: Path) -> None:
    """It reads the seeds, and writes an input that breaks something, through a descriptor."""
    (first, *_) = write_seeds(tmp_path / "seeds")
    target = fuzzer(tmp_path / "fuzz", "-fsanitize=fuzzer", compiler="clang")
    directory = os.open(first.parent, os.O_RDONLY)
    corpus = f"/proc/self/fd/{directory}"
    options = {
        "max_total_time": FUZZ_SECONDS,
        "max_len": 8192,
        "timeout": 10,
        "rss_limit_mb": 1024,
        "detect_leaks": 0,
        "seed": 1,
        "artifact_prefix": f"{corpus}/",
    }
    try:
        switches = [f"-{name}={value}" for name, value in options.items()]
        fuzz(tmp_path, target, *switches, corpus, keep=directory)
    finally:
        os.close(directory)
