"""Wall and CPU time: every run ends by its deadline, by a clock outside the sandbox."""

from __future__ import annotations

from code_executor.model import LimitHit
from code_executor.ports import Backend
from code_executor.sandbox.conformance.bench import (
    FAILED,
    SUCCEEDED,
    TIMEOUT,
    ended,
    expect,
    printed,
    timed,
)
from code_executor.sandbox.conformance.registry import check

LATEST = 1.0
"""Seconds after its deadline by which a run must have ended (P3)."""


async def _times_out(backend: Backend, code: str, **limits: int) -> None:
    """``code`` prints ``begin``, then never ends; its wall clock of 800 ms must end it."""
    chosen = {"timeout_ms": 800, "cpu_ms": 20_000} | limits
    outcome, seconds = await timed(backend, code, **chosen)
    ended(outcome, TIMEOUT, limit_hit=LimitHit.WALL, exit_code=None)
    expect(outcome.stdout.data.startswith(b"begin\n"), "partial output lost", outcome)
    expect(0.75 <= seconds <= 0.8 + LATEST, f"ended after {seconds:.2f} s of a deadline of 0.8 s")
    wall = outcome.usage.wall_ms
    expect(750 <= wall <= 800 + 1000 * LATEST, f"wall_ms {wall} of a deadline of 800 ms")


@check("P3")
async def sleeping(backend: Backend) -> None:
    """A sleeping program ends at its deadline."""
    await _times_out(backend, "import time; print('begin', flush=True); time.sleep(60)")


@check("P3")
async def busy(backend: Backend) -> None:
    """A busy program ends at its deadline, with its CPU time told."""
    await _times_out(backend, "print('begin', flush=True)\nwhile True: pass")


@check("P3")
async def deaf_to_signals(backend: Backend) -> None:
    """Ignoring and blocking every signal that can be ignored changes nothing."""
    code = """
        import signal, time
        for s in signal.valid_signals():
            try: signal.signal(s, signal.SIG_IGN)
            except (OSError, ValueError): pass
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        print("begin", flush=True)
        while True: time.sleep(1)
    """
    await _times_out(backend, code)


@check("P3")
async def stopped(backend: Backend) -> None:
    """A program that stops itself and every process it can reach ends at its deadline."""
    for target in ("os.getpid()", "0", "-1"):
        code = f"""
            import os, signal, time
            print("begin", flush=True)
            if os.fork() == 0: time.sleep(60)
            try: os.kill({target}, signal.SIGSTOP)
            except OSError: pass
            time.sleep(60)
        """
        await _times_out(backend, code)


@check("P3")
async def many_children(backend: Backend) -> None:
    """Dozens of busy children in sessions of their own end with it."""
    code = """
        import os
        print("begin", flush=True)
        for _ in range(30):
            if os.fork() == 0:
                os.setsid()
                while True: pass
        while True: pass
    """
    await _times_out(backend, code)


@check("P3")
async def closed_streams(backend: Backend) -> None:
    """Closing every descriptor neither ends the run early nor late."""
    code = """
        import os, time
        print("begin", flush=True)
        os.closerange(0, 1000)
        time.sleep(60)
    """
    await _times_out(backend, code)


@check("P3")
async def blocked_on_a_fifo(backend: Backend) -> None:
    """A program stuck in the kernel, opening a fifo that nobody writes, ends at its deadline."""
    code = "import os; print('begin', flush=True); os.mkfifo('/tmp/f'); open('/tmp/f').read()"
    await _times_out(backend, code)


@check("P3")
async def traced_by_vfork(backend: Backend) -> None:
    """A parent that waits without end for its child ends at its deadline."""
    code = """
        import subprocess
        print("begin", flush=True)
        subprocess.run(["sh", "-c", "trap '' TERM INT HUP; while :; do sleep 1; done"])
    """
    await _times_out(backend, code)


@check("P3")
async def a_program_that_keeps_replacing_itself(backend: Backend) -> None:
    """A program that replaces itself by exec again and again cannot outrun the clock."""
    code = """
        import os
        print("begin", flush=True)
        script = 'exec /bin/sh -c "$0" "$0"'
        os.execv("/bin/sh", ["sh", "-c", script, script])
    """
    await _times_out(backend, code)


@check("P4")
async def cpu_of_one_thread(backend: Backend) -> None:
    """CPU time over the limit ends the run, long before its wall clock."""
    outcome, seconds = await timed(
        backend, "print('begin', flush=True)\nwhile True: pass", cpu_ms=500, timeout_ms=10_000
    )
    ended(outcome, TIMEOUT, limit_hit=LimitHit.CPU)
    expect(outcome.stdout.data == b"begin\n", "partial output lost", outcome)
    cpu = outcome.usage.cpu_ms
    expect(450 <= cpu <= 1500, f"cpu_ms {cpu} of a limit of 500")
    expect(seconds < 4, f"took {seconds:.1f} s")


@check("P4")
async def cpu_of_threads_together(backend: Backend) -> None:
    """Threads burn from one account."""
    code = """
        import hashlib, threading
        def burn():
            while True: hashlib.sha256(bytes(1 << 20)).digest()
        for _ in range(4): threading.Thread(target=burn).start()
    """
    outcome, seconds = await timed(backend, code, cpu_ms=800, timeout_ms=10_000)
    ended(outcome, TIMEOUT, limit_hit=LimitHit.CPU)
    expect(seconds < 5, f"took {seconds:.1f} s")


@check("P4")
async def cpu_of_processes_together(backend: Backend) -> None:
    """Processes burn from the same account, those that have ended included."""
    code = """
        import os, time
        def burn(seconds):
            end = time.process_time() + seconds
            while time.process_time() < end: pass
        while True:
            if os.fork() == 0:
                burn(0.2); os._exit(0)
            os.wait()
    """
    outcome, seconds = await timed(backend, code, cpu_ms=800, timeout_ms=10_000)
    ended(outcome, TIMEOUT, limit_hit=LimitHit.CPU)
    expect(seconds < 5, f"took {seconds:.1f} s")


@check("P4")
async def cpu_of_orphans_counts(backend: Backend) -> None:
    """Short-lived orphans that nobody waits for are counted too."""
    code = """
        import os, time
        for _ in range(1000):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    end = time.process_time() + 0.1
                    while time.process_time() < end: pass
                os._exit(0)
            os.wait(); time.sleep(0.02)
        time.sleep(30)
    """
    outcome, seconds = await timed(backend, code, cpu_ms=1_000, timeout_ms=10_000)
    ended(outcome, TIMEOUT, limit_hit=LimitHit.CPU)
    expect(seconds < 8, f"took {seconds:.1f} s")


@check("P4")
async def sleeping_costs_no_cpu(backend: Backend) -> None:
    """A program that sleeps longer than its CPU limit is not ended for it."""
    outcome, _ = await timed(backend, "import time; time.sleep(1.2); print('ok')", cpu_ms=500)
    printed(outcome, "ok\n")


@check("P8")
async def the_programs_own_limit_is_no_timeout(backend: Backend) -> None:
    """A program ended by an alarm or a limit that it set itself has failed."""
    alarm = "import signal, time; signal.setitimer(signal.ITIMER_REAL, 0.1); time.sleep(5)"
    outcome, _ = await timed(backend, alarm)
    ended(outcome, FAILED, signal="SIGALRM", limit_hit=None)
    own = "import resource as r; r.setrlimit(r.RLIMIT_CPU, (1, 2))\nwhile True: pass"
    outcome, _ = await timed(backend, own, cpu_ms=4_000)
    ended(outcome, FAILED, signal="SIGXCPU", limit_hit=None)


@check("P8")
async def finishing_just_in_time(backend: Backend) -> None:
    """A program that ends shortly before its deadline has succeeded."""
    outcome, _ = await timed(backend, "import time; time.sleep(0.5); print('ok')", timeout_ms=1_500)
    printed(outcome, "ok\n")


@check("P3")
async def a_short_deadline(backend: Backend) -> None:
    """Even a deadline of one millisecond gives an outcome, not an error."""
    outcome, seconds = await timed(backend, "import time; time.sleep(5)", timeout_ms=1)
    ended(outcome, TIMEOUT, limit_hit=LimitHit.WALL)
    expect(seconds < 1 + LATEST, f"took {seconds:.2f} s")


@check("P3")
async def waiting_for_nobody(backend: Backend) -> None:
    """The run ends when the program ends, not when the last holder of its pipe does."""
    code = """
        import os, time
        print("parent", flush=True)
        if os.fork() == 0:
            time.sleep(30); print("child", flush=True)
    """
    outcome, seconds = await timed(backend, code)
    ended(outcome, SUCCEEDED)
    expect(outcome.stdout.data == b"parent\n", "output", outcome)
    expect(seconds < 1.5, f"took {seconds:.1f} s")
