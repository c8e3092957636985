"""Runs that are hard on the native sandbox: large, odd, flooding, or not what was prepared."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace

import pytest

from code_executor.builds import Builds, Key
from code_executor.clock import SystemClock
from code_executor.model import MIB, LimitHit, Plan, RunStatus, StagedFile
from code_executor.pool import Pool
from code_executor.sandbox.conformance.bench import carry_out, plan
from code_executor.sandbox.native import NativeBackend
from code_executor.shelf import Size
from code_executor.worker import Worker

pytestmark = [pytest.mark.sandbox, pytest.mark.asyncio(loop_scope="module")]

HELLO = {
    "python": "print('hello')",
    "node": "console.log('hello')",
    "ruby": "puts 'hello'",
    "php": '<?php echo "hello\\n";',
    "go": 'package main\nimport "fmt"\nfunc main() { fmt.Println("hello") }\n',
}


async def there(backend: NativeBackend, language: str) -> None:
    status = {each.id: each for each in await backend.languages()}[language]
    if not status.available:
        pytest.skip(f"{language}: {status.reason}")


# ── prepared warm, run cold ──


@pytest.mark.parametrize("language", HELLO)
async def test_a_cold_plan_finds_no_trace_of_the_warm_interpreter(
    backend: NativeBackend, language: str
) -> None:
    await there(backend, language)
    cold = replace(plan(language, HELLO[language], args=("a",)), warm=False)
    outcome = await carry_out(backend, cold)
    assert (outcome.status, outcome.stdout.data, outcome.stderr.data) == (
        RunStatus.SUCCEEDED,
        b"hello\n",
        b"",
    )


@pytest.mark.parametrize("language", HELLO)
async def test_a_cold_program_is_alone_in_its_sandbox(
    backend: NativeBackend, language: str
) -> None:
    await there(backend, language)
    argv = ("/bin/sh", "-c", "set -- $(ls -d /proc/[1-9]*); echo $#; ls /proc/self/fd; ls -A /work")
    cold = plan(language, HELLO[language])
    cold = replace(
        cold,
        warm=False,
        flavour=cold.built_flavour or cold.flavour,  # Go's run alone never gets the other
        steps=(replace(cold.steps[-1], argv=argv),),
    )
    outcome = await carry_out(backend, cold)
    source = cold.files[0].path
    # the shell twice (init is hidden); the standard streams and what ls opens; the program's file
    assert outcome.stdout.data.decode().split() == ["2", "0", "1", "2", "3", source, "outputs"]


@pytest.mark.parametrize(
    ("language", "code", "env"),
    [
        ("python", "print(__debug__)", {"PYTHONOPTIMIZE": "1"}),
        ("node", "console.log(process.stdout.hasColors !== undefined, 1)", {"TZ": "Asia/Tokyo"}),
        ("ruby", "puts Encoding.default_external", {"LANG": "C"}),
        ("php", "<?php echo getenv('TZ');", {"TZ": "Asia/Tokyo"}),
    ],
)
async def test_what_is_read_at_the_start_takes_a_fresh_interpreter(
    backend: NativeBackend, language: str, code: str, env: dict[str, str]
) -> None:
    await there(backend, language)
    planned = plan(language, code, env=env)
    assert not planned.warm
    assert (await carry_out(backend, planned)).status is RunStatus.SUCCEEDED


# ── staging ──


async def test_files_of_odd_names_and_depths_arrive(backend: NativeBackend) -> None:
    names = [
        "a b",
        "ünï/表/🙂",
        "-rf",
        "new\nline",
        "n" * 255,
        "/".join("abcdefghij" * 10),
        "...",
        "~",
    ]
    code = """
        import os, sys
        for name in sys.argv[1:]:
            path = 'inputs/' + name
            about = os.stat(path)
            print(open(path).read() == name, oct(about.st_mode), about.st_uid == os.getuid())
            os.remove(path)
    """
    given = plan("python", code, args=tuple(names))
    files = [StagedFile(f"inputs/{name}", name.encode()) for name in names]
    outcome = await carry_out(backend, replace(given, files=(*given.files, *files)))
    assert outcome.stdout.data.decode().splitlines() == ["True 0o100644 True"] * len(names)


async def test_twenty_five_megabytes_of_files_arrive_in_time(backend: NativeBackend) -> None:
    content = bytes(range(256)) * (25 * MIB // 256)
    given = plan(
        "python", "import hashlib; print(hashlib.sha256(open('big','rb').read()).hexdigest())"
    )
    began = time.monotonic()
    outcome = await carry_out(
        backend, replace(given, files=(*given.files, StagedFile("big", content)))
    )
    assert outcome.stdout.data.decode().strip() == hashlib.sha256(content).hexdigest()
    assert time.monotonic() - began < 10
    assert outcome.usage.wall_ms < 3000  # the clock is the program's, not the staging's


async def test_files_larger_than_the_memory_are_the_program_s_problem(
    backend: NativeBackend,
) -> None:
    given = plan("python", "print('never')", memory_mb=16)
    big = StagedFile("big", bytes(40 * MIB))
    outcome = await carry_out(backend, replace(given, files=(*given.files, big)))
    assert (outcome.status, outcome.limit_hit) == (RunStatus.OOM, LimitHit.MEMORY)


@pytest.mark.parametrize("language", HELLO)
@pytest.mark.parametrize("memory_mb", [1, 4, 16])
async def test_little_memory_is_the_program_s_problem_however_it_is_started(
    backend: NativeBackend, language: str, memory_mb: int
) -> None:
    """What waits already may be larger than the run may be."""
    await there(backend, language)
    outcome = await carry_out(backend, plan(language, HELLO[language], memory_mb=memory_mb))
    if outcome.status is RunStatus.OOM:
        assert outcome.limit_hit is LimitHit.MEMORY
    else:
        assert outcome.status in {RunStatus.SUCCEEDED, RunStatus.FAILED}


# ── streams ──

TEN_MB = "x" * 10_000_000


async def test_ten_megabytes_of_input_arrive(backend: NativeBackend) -> None:
    given = plan("python", "import sys; print(len(sys.stdin.read()))", stdin=TEN_MB)
    assert (await carry_out(backend, given)).stdout.data == b"10000000\n"


@pytest.mark.parametrize(
    "code",
    ["pass", "import os; os.close(0); print(1)", "import sys; sys.stdin.read(5)"],
    ids=["not read", "closed", "read in part"],
)
async def test_input_that_is_not_read_holds_nothing_up(backend: NativeBackend, code: str) -> None:
    outcome = await carry_out(backend, plan("python", code, stdin=TEN_MB))
    assert outcome.status is RunStatus.SUCCEEDED
    assert outcome.usage.wall_ms < 3000


async def test_a_flood_of_output_ends_the_run_with_its_first_and_last_words(
    backend: NativeBackend,
) -> None:
    code = "import os\nos.write(1, b'first')\nwhile True: os.write(1, b'y' * 65536)"
    outcome = await carry_out(backend, plan("python", code, max_output_bytes=1000))
    assert (outcome.status, outcome.limit_hit) == (RunStatus.KILLED, LimitHit.OUTPUT)
    assert outcome.stdout.data.startswith(b"first")
    assert len(outcome.stdout.data) < 1100
    assert outcome.stdout.truncated
    assert outcome.stdout.total_bytes > 16 * MIB


async def test_output_up_to_the_flood_is_cut_and_no_offence(backend: NativeBackend) -> None:
    code = "import sys\nsys.stdout.write('a' * 8_000_000)\nsys.stderr.write('b' * 8_000_000)"
    outcome = await carry_out(backend, plan("python", code, max_output_bytes=100))
    assert outcome.status is RunStatus.SUCCEEDED
    assert outcome.stdout.total_bytes == outcome.stderr.total_bytes == 8_000_000
    assert outcome.usage.output_bytes == 16_000_000


# ── a compiled language ──


async def test_a_program_that_does_not_compile_is_never_run(backend: NativeBackend) -> None:
    await there(backend, "go")
    outcome = await carry_out(backend, plan("go", "package main\nfunc main() { x }"))
    assert (outcome.status, outcome.phase) == (RunStatus.FAILED, "compile")
    assert outcome.usage.compile_ms is not None


async def test_what_the_compiler_made_comes_along_and_runs_elsewhere(
    backend: NativeBackend,
) -> None:
    await there(backend, "go")
    spoils = """
        package main

        import ("fmt"; "os")

        func main() {
            os.Remove("/work/.bin/main")
            os.WriteFile("/work/.bin/main", []byte("#!/bin/sh\\necho spoilt"), 0o755)
            fmt.Println("ran", os.Args[1])
        }
    """
    first = plan("go", spoils, args=("once",))
    made = await carry_out(backend, first)
    assert (made.stdout.data, made.built is not None) == (b"ran once\n", True)
    builds, key = Builds(16 * MIB), Key("a", b"k")
    builds.keep(key, made.built or b"")
    again = builds.reuse(key, replace(first, args=("again",)))
    assert again is not None
    outcome = await carry_out(backend, again)
    assert (outcome.stdout.data, outcome.built) == (b"ran again\n", None)


async def test_the_same_program_is_compiled_once_for_each_tenant(backend: NativeBackend) -> None:
    await there(backend, "go")
    pool = Pool(backend, {"go": Size(0, 0), "go-built": Size(0, 0)})
    worker = Worker(pool, SystemClock(), builds=Builds(16 * MIB))
    outcomes = [await worker.execute(plan("go", HELLO["go"]), tenant=each) for each in "aab"]
    await pool.close()
    assert {outcome.stdout.data for outcome in outcomes} == {b"hello\n"}
    assert [outcome.usage.compile_ms == 0 for outcome in outcomes] == [False, True, False]


async def test_both_programs_share_one_clock(backend: NativeBackend) -> None:
    await there(backend, "go")
    endless: Plan = plan("go", "package main\nfunc main() { for {} }", timeout_ms=3000)
    began = time.monotonic()
    outcome = await carry_out(backend, endless)
    assert (outcome.status, outcome.phase) == (RunStatus.TIMEOUT, "run")
    assert 3000 <= outcome.usage.wall_ms < 4000
    assert time.monotonic() - began < 6


# ── a group that serves again ──

LARGE = "x = bytearray(100 << 20); x[::4096] = b'1' * len(x[::4096]); print(len(x))"


async def test_a_run_tells_nothing_of_the_group_s_earlier_ones(backend: NativeBackend) -> None:
    large = await carry_out(backend, plan("python", LARGE))
    over = await carry_out(backend, plan("python", LARGE, memory_mb=64))
    small = [await carry_out(backend, plan("python", "print(1)")) for _ in range(3)]
    assert large.usage.max_rss_mb >= 100
    assert over.status is RunStatus.OOM
    for outcome in small:
        assert outcome.status is RunStatus.SUCCEEDED
        assert outcome.usage.max_rss_mb < 20
        assert outcome.usage.cpu_ms < 1000
