"""What a program is given and what its end is reported as."""

from __future__ import annotations

import base64

from code_executor.model import Phase
from code_executor.ports import Backend
from code_executor.sandbox.conformance.bench import (
    FAILED,
    SUCCEEDED,
    ended,
    expect,
    printed,
    python,
    timed,
    told,
)
from code_executor.sandbox.conformance.registry import check

SIGNALS = (
    "SIGHUP", "SIGINT", "SIGQUIT", "SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGKILL",
    "SIGUSR1", "SIGSEGV", "SIGUSR2", "SIGALRM", "SIGTERM", "SIGXCPU", "SIGVTALRM", "SIGSYS",
)  # fmt: skip


@check("P8")
async def streams_are_kept_apart(backend: Backend) -> None:
    """Stdout and stderr arrive apart and complete."""
    outcome = await python(backend, "import sys\nprint('out')\nprint('err', file=sys.stderr)")
    printed(outcome, "out\n")
    expect(outcome.stderr.data == b"err\n", "expected 'err' on stderr", outcome)


@check("P8")
async def a_program_may_print_nothing(backend: Backend) -> None:
    """An empty program succeeds with empty streams."""
    outcome = await python(backend, "")
    printed(outcome, b"")
    expect(outcome.stderr.total_bytes == 0, "expected nothing on stderr", outcome)


@check("P8")
async def exit_codes_are_the_programs_own(backend: Backend) -> None:
    """Every exit code arrives as it is; only 0 succeeds."""
    for code in (0, 1, 2, 77, 255):
        outcome = await python(backend, f"import sys; sys.exit({code})")
        status = SUCCEEDED if code == 0 else FAILED
        ended(outcome, status, exit_code=code, signal=None, phase=Phase.RUN, limit_hit=None)


@check("P8")
async def exit_codes_that_look_like_verdicts(backend: Backend) -> None:
    """A program that exits with 124, 137 and their like by itself has failed, no more."""
    for code in (124, 125, 126, 127, 137, 139, 143):
        outcome = await python(backend, f"import os; os._exit({code})")
        ended(outcome, FAILED, exit_code=code, signal=None, limit_hit=None, reason=None)


@check("P8")
async def signals_are_named(backend: Backend) -> None:
    """A program ended by a signal has failed with the signal's name and no exit code."""
    for name in SIGNALS:
        code = f"import os, signal, time; os.kill(os.getpid(), signal.{name}); time.sleep(3)"
        outcome = await python(backend, code)
        if name == "SIGINT":  # Python's own handler raises KeyboardInterrupt, then re-raises
            expect(b"KeyboardInterrupt" in outcome.stderr.data, "expected a traceback", outcome)
        ended(outcome, FAILED, exit_code=None, signal=name, limit_hit=None)


@check("P8")
async def a_crash_is_a_failure(backend: Backend) -> None:
    """A real segmentation fault is SIGSEGV, with what was printed before it."""
    outcome = await python(backend, "import ctypes; print('x', flush=True); ctypes.string_at(0)")
    ended(outcome, FAILED, exit_code=None, signal="SIGSEGV")
    expect(outcome.stdout.data == b"x\n", "expected the output before the crash", outcome)


@check("P8")
async def killed_by_its_own_child(backend: Backend) -> None:
    """A main program that its own child kills has failed with SIGKILL: not oom, not killed."""
    code = """
        import os, signal, time
        if os.fork() == 0:
            os.kill(os.getppid(), signal.SIGKILL)
            os._exit(0)
        time.sleep(3)
    """
    ended(await python(backend, code), FAILED, exit_code=None, signal="SIGKILL", limit_hit=None)


@check("P8")
async def deep_recursion_is_an_exception(backend: Backend) -> None:
    """Unbounded recursion is the interpreter's RecursionError, not a crash."""
    outcome = await python(backend, "def f(): f()\nf()")
    ended(outcome, FAILED, exit_code=1, signal=None)
    expect(b"RecursionError" in outcome.stderr.data, "expected RecursionError", outcome)


@check("P8")
async def exec_keeps_the_run(backend: Backend) -> None:
    """A program that replaces itself by exec is still the program."""
    outcome = await python(
        backend, "import os; os.execv('/bin/sh', ['sh', '-c', 'echo sh; exit 9'])"
    )
    ended(outcome, FAILED, exit_code=9)
    expect(outcome.stdout.data == b"sh\n", "expected the output of the new program", outcome)


@check("P8")
async def arguments_are_passed_as_they_are(backend: Backend) -> None:
    """Arguments reach the program unparsed: options, blanks, quotes, globs, the empty one."""
    args = ("-c", "--help", "a b", "", "*", "$HOME", "'\"\\", "ünï", "line\nbreak", "x" * 5000)
    outcome = await python(backend, "import json, sys; print(json.dumps(sys.argv[1:]))", args=args)
    expect(told(outcome) == list(args), "the arguments changed on their way", outcome)


@check("P8")
async def stdin_is_what_was_given(backend: Backend) -> None:
    """The program reads exactly the given text, then end of file."""
    code = "import sys; d = sys.stdin.buffer.read(); sys.stdout.buffer.write(d[::-1])"
    printed(await python(backend, code, stdin="abc\0ü\n"), "abc\0ü\n".encode()[::-1])
    printed(await python(backend, code), b"")


@check("P3")
async def unread_stdin_does_no_harm(backend: Backend) -> None:
    """A program that never reads a large stdin, or closes it, ends like any other."""
    big = "x" * 2_000_000
    for code in ("print('done')", "import os; os.close(0); print('done')"):
        outcome, seconds = await timed(backend, code, stdin=big)
        printed(outcome, "done\n")
        expect(seconds < 2, f"took {seconds:.1f} s", outcome)


@check("P8")
async def large_stdin_arrives(backend: Backend) -> None:
    """Four megabytes of stdin arrive complete."""
    code = """
        import hashlib, sys
        data = sys.stdin.buffer.read()
        print(len(data), hashlib.md5(data).hexdigest())
    """
    printed(
        await python(backend, code, stdin="0123456789abcdef" * 262_144),
        "4194304 e230a73093573d16cc4d9a4f7373f4cb\n",
    )


@check("P7")
async def the_environment_is_the_documented_one(backend: Backend) -> None:
    """The environment is what the plan says, nothing inherited."""
    given = {"NAME": "värde", "EMPTY": "", "A_B": "x=y\nz"}
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    seen = told(await python(backend, code, env=given))
    expect({k: seen.get(k) for k in given} == given, f"the caller's variables came as {seen}")
    fixed = {"HOME": "/work", "TMPDIR": "/tmp", "LANG": "C.UTF-8"}
    expect({k: seen.get(k) for k in fixed} == fixed, f"HOME, TMPDIR and LANG came as {seen}")
    allowed = {"PATH", "MPLBACKEND", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", *given, *fixed}
    expect(set(seen) <= allowed, f"unexpected variables: {sorted(set(seen) - allowed)}")


@check("P1")
async def variables_of_the_loader_are_dropped(backend: Backend) -> None:
    """LD_* and what would change the runner itself never arrive."""
    given = {"LD_PRELOAD": "/work/x.so", "LD_AUDIT": "/work/x.so", "PYTHONHOME": "/work", "OK": "1"}
    code = "import json, os; print(json.dumps(sorted(os.environ)))"
    seen = told(await python(backend, code, env=given))
    expect("OK" in seen, f"OK is missing in {seen}")
    expect(not set(given).difference({"OK"}).intersection(seen), f"arrived: {seen}")


@check("P8")
async def variables_read_at_the_start_work(backend: Backend) -> None:
    """Variables that an interpreter reads while starting have their effect."""
    code = "import sys; print(sys.flags.optimize, sys.flags.dont_write_bytecode, hash('a'))"
    given = {"PYTHONOPTIMIZE": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"}
    first = await python(backend, code, env=given)
    expect(first.stdout.data.startswith(b"1 1 "), "expected optimize=1", first)
    printed(await python(backend, code, env=given), first.stdout.data)


@check("P5")
async def input_files_are_staged(backend: Backend) -> None:
    """Input files are below inputs/, byte for byte, with directories and odd names."""
    files = {
        "a.txt": b"plain\n",
        "deep/er/b.bin": bytes(range(256)),
        "ü ñ 'q'.txt": b"odd",
        "empty": b"",
        "-rf": b"dash",
        "big.bin": b"\xa5" * 3_000_000,
    }
    code = """
        import base64, json, pathlib
        root = pathlib.Path("inputs")
        found = {str(p.relative_to(root)): p for p in root.rglob("*") if p.is_file()}
        got = {k: base64.b64encode(p.read_bytes()).decode() for k, p in found.items()}
        print(json.dumps({k: v if len(v) < 10000 else len(v) for k, v in got.items()}))
    """
    encoded = {name: base64.b64encode(data).decode() for name, data in files.items()}
    wanted = {k: v if len(v) < 10_000 else len(v) for k, v in encoded.items()}
    outcome = await python(backend, code, files=files)
    expect(told(outcome) == wanted, "the input files changed on their way", outcome)


@check("P8")
async def further_sources_are_importable(backend: Backend) -> None:
    """Further source files lie beside the main one and can be imported."""
    sources = {"helper.py": "x = 5\n", "pkg/__init__.py": "", "pkg/mod.py": "def f(): return 6\n"}
    code = "import helper, pkg.mod; print(helper.x, pkg.mod.f(), helper.__file__)"
    printed(await python(backend, code, sources=sources), "5 6 /work/helper.py\n")


@check("P8")
async def a_source_wins_over_the_library(backend: Backend) -> None:
    """A source file with the name of a library module is the one that is imported."""
    sources = {"json.py": "mine = 1\n", "numpy.py": "mine = 2\n"}
    code = "import json, numpy; print(json.mine, numpy.mine)"
    printed(await python(backend, code, sources=sources), "1 2\n")


@check("P4")
async def the_working_directory_is_writable(backend: Backend) -> None:
    """/work, /tmp and /dev/shm can be written, and are empty of anything unasked for."""
    code = """
        import os
        print(os.getcwd(), sorted(os.listdir("/work")), os.listdir("/tmp"), os.listdir("/dev/shm"))
        for d in ("/work", "/work/inputs", "/work/outputs", "/tmp", "/dev/shm"):
            os.makedirs(d, exist_ok=True)
            with open(d + "/file", "w") as f: f.write("x")
            os.mkdir(d + "/dir"); os.rename(d + "/file", d + "/dir/file")
            os.symlink("dir", d + "/link")
            assert os.stat(d + "/link/file").st_size == 1
    """
    printed(await python(backend, code), "/work ['main.py', 'outputs'] [] []\n")


@check("P8")
async def usage_is_true(backend: Backend) -> None:
    """Wall and CPU time are what was spent, by all processes and threads together."""
    code = """
        import os, threading, time
        def burn(seconds):
            end = time.thread_time() + seconds
            while time.thread_time() < end: pass
        time.sleep(0.5)
        if os.fork() == 0:
            burn(0.3); os._exit(0)
        t = threading.Thread(target=burn, args=(0.2,)); t.start(); t.join()
        os.wait()
    """
    usage = (outcome := await python(backend, code)).usage
    ended(outcome, SUCCEEDED)
    expect(450 <= usage.cpu_ms <= 1200, f"cpu_ms {usage.cpu_ms}, wanted about 500")
    expect(780 <= usage.wall_ms <= 3000, f"wall_ms {usage.wall_ms}, wanted about 1000")
    idle = (await python(backend, "import time; time.sleep(1)")).usage
    expect(950 <= idle.wall_ms <= 2000, f"wall_ms of a sleep of 1 s: {idle.wall_ms}")
    expect(idle.cpu_ms < 400, f"cpu_ms of a sleep: {idle.cpu_ms}")


@check("P8")
async def memory_usage_is_true(backend: Backend) -> None:
    """The peak of memory is about what was touched, children and tmpfs included."""
    small = (await python(backend, "pass")).usage.max_rss_mb
    big = (await python(backend, "x = b'x' * (100 << 20)")).usage.max_rss_mb
    file = (await python(backend, "open('/tmp/f','wb').write(b'x' * (60 << 20))")).usage.max_rss_mb
    expect(0 < small < 80, f"max_rss_mb of an empty program: {small}")
    expect(95 <= big <= 256, f"max_rss_mb after touching 100 MiB: {big}")
    expect(55 <= file <= 256, f"max_rss_mb after writing 60 MiB to /tmp: {file}")


@check("P8")
async def output_is_counted(backend: Backend) -> None:
    """``usage.output_bytes`` and the totals of the streams are the bytes written."""
    code = "import sys; sys.stdout.write('o' * 70000); sys.stderr.write('e' * 333)"
    outcome = await python(backend, code)
    expect(outcome.stdout.total_bytes == 70_000, "stdout total", outcome)
    expect(outcome.stderr.total_bytes == 333, "stderr total", outcome)
    expect(outcome.usage.output_bytes == 70_333, f"output_bytes {outcome.usage.output_bytes}")
