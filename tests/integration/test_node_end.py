"""Node.js's early end (``init/node_end.c``) against its ordinary one: only its time differs."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from code_executor.sandbox.build import binaries

NODE, COMPILER = shutil.which("node"), shutil.which("cc") or shutil.which("gcc")
pytestmark = pytest.mark.skipif(not NODE or not COMPILER, reason="there is no Node.js or compiler")

GOODBYE = """
#include <unistd.h>
__attribute__((destructor)) static void end(void) { write(1, "bye", 3); }
void *napi_register_module_v1(void *env, void *exports) { (void)env; return exports; }
"""
PROGRAMS = [
    "process.exitCode = 3",
    "process.on('exit', (code) => { console.log(code); process.exitCode = 4; }); console.log(1)",
    "process.on('exit', () => process.exit(257))",
    "console.log(1); console.error(2); process.exit(-1)",
    "process.stdout; process.stderr; throw new Error('x')",
    "process.on('uncaughtException', () => { throw 1; }); throw 2",
    "Promise.reject(new Error('y'))",
    "process.kill(process.pid)",
    "require('fs').closeSync(1); process.exitCode = 5",
    "process.stderr.write('x'.repeat(300000))",
]


def ended(code: str, *options: str, **env: str) -> tuple[int, bytes, bool]:
    """Its exit code, what it says, and whether it leaves the pipe that it wrote to blocking."""
    reading, writing = os.pipe()
    with open(reading, "rb") as read, open(writing, "wb") as write:
        plain = {"PATH": os.environ["PATH"], **env}
        command = [str(NODE), *options, "-e", code]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=write, stderr=write, env=plain
        ) as node:
            os.set_blocking(reading, False)
            said = b""
            while node.poll() is None:
                said += read.read() or b""
            said += read.read() or b""
        return node.returncode, said, not fcntl.fcntl(write, fcntl.F_GETFL) & os.O_NONBLOCK


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The option that loads it first."""
    file = tmp_path_factory.mktemp("early") / "early.js"
    file.write_text(f"process.dlopen({{ exports: {{}} }}, '{binaries().node}');")
    return f"--require={file}"


@pytest.fixture(scope="module")
def goodbye(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that says something when it is unloaded."""
    source = tmp_path_factory.mktemp("goodbye") / "goodbye.c"
    source.write_text(GOODBYE)
    library = source.with_suffix(".so")
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-w", "-o", library, source], check=True)
    return library


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_ends_as_it_always_does(program: str, early: str) -> None:
    plain = ended(program)
    assert ended(program, early) == plain
    assert plain[2]


def test_it_leaves_before_what_nobody_sees(early: str, goodbye: Path) -> None:
    preloaded = {"LD_PRELOAD": str(goodbye)}
    assert ended("1", **preloaded)[1] == b"bye"
    assert ended("1", early, **preloaded)[1] == b""


def test_it_forgets_of_the_start_what_the_file_holds(early: str) -> None:
    """What a mapping has of its own stays: without relocated pointers nothing would run."""
    show = (
        "console.log(/RssFile:\\s*(\\d+)/.exec(require('fs').readFileSync('/proc/self/status'))[1])"
    )
    ordinary, less = (int(ended(show, *options)[1]) for options in ((), (early,)))
    assert less < ordinary * 0.8


def test_a_library_that_the_program_loads_sees_its_end(early: str, goodbye: Path) -> None:
    assert ended(f"process.dlopen({{ exports: {{}} }}, '{goodbye}')", early)[1] == b"bye"
