"""Processes: how many there can be, and that none is left when the run is over."""

from __future__ import annotations

import asyncio
import time

from code_executor.ports import Backend
from code_executor.sandbox.conformance.bench import (
    FAILED,
    SUCCEEDED,
    TIMEOUT,
    ended,
    expect,
    host_processes,
    marker,
    printed,
    python,
    timed,
    told,
)
from code_executor.sandbox.conformance.registry import check

PROCESSES = 64
GRACE_S = 2.0


async def _leaves_nothing(backend: Backend, code: str, **limits: int) -> None:
    """``code`` starts ``sys.argv[1]``-marked processes meant to stay; none may, a moment later."""
    marked = marker()
    await python(backend, code, args=(marked,), **limits)
    deadline = time.monotonic() + GRACE_S
    # The host's process table raises no event to wait for.
    while (left := host_processes(marked)) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    expect(not left, f"left on the host: {left}")


@check("P4")
async def a_fork_bomb_ends(backend: Backend) -> None:
    """A fork bomb meets EAGAIN, ends by its deadline and leaves nothing."""
    code = """
        import os
        while True:
            try: os.fork()
            except OSError: pass
    """
    outcome, seconds = await timed(backend, code, timeout_ms=1_500, cpu_ms=20_000)
    ended(outcome, TIMEOUT)
    expect(seconds < 2.5, f"took {seconds:.1f} s")
    printed(await python(backend, "print('next')"), "next\n")
    await _leaves_nothing(backend, code, timeout_ms=1_000, cpu_ms=20_000)


@check("P4")
async def the_number_of_processes_is_bounded(backend: Backend) -> None:
    """Past the limit fork and threads fail with EAGAIN, not the machine."""
    code = """
        import os, time, json
        n = 0
        try:
            while n < 1000:
                if os.fork() == 0: time.sleep(20); os._exit(0)
                n += 1
        except OSError as e: print(json.dumps([e.errno, n]))
    """
    errno, number = told(await python(backend, code))
    expect(errno == 11, f"errno {errno}, expected EAGAIN")
    expect(PROCESSES - 10 <= number <= PROCESSES, f"{number} processes of {PROCESSES}")


@check("P4")
async def threads_count_as_processes(backend: Backend) -> None:
    """Threads draw from the same number."""
    code = """
        import threading, time
        n = 0
        try:
            for n in range(1000):
                threading.Thread(target=time.sleep, args=(3,), daemon=True).start()
        except RuntimeError: pass
        print(n)
    """
    number = int((await python(backend, code)).stdout.data)
    expect(PROCESSES - 10 <= number <= PROCESSES, f"{number} threads of {PROCESSES}")


@check("P3")
async def a_grandchild_holding_the_pipe(backend: Backend) -> None:
    """A grandchild that keeps the streams open does not keep the answer."""
    code = """
        import subprocess, sys
        subprocess.Popen(["sh", "-c", "sleep 30 & sleep 30"])
        print("done")
        sys.exit(3)
    """
    outcome, seconds = await timed(backend, code)
    ended(outcome, FAILED, exit_code=3)
    expect(outcome.stdout.data == b"done\n", "output", outcome)
    expect(seconds < 1.5, f"took {seconds:.1f} s")


@check("P2")
async def daemons_do_not_outlive_the_run(backend: Backend) -> None:
    """Double forks, new sessions, closed streams, ignored signals: nothing is left."""
    code = """
        import os, signal, sys
        for _ in range(3):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    for s in (signal.SIGTERM, signal.SIGHUP): signal.signal(s, signal.SIG_IGN)
                    os.closerange(0, 64)
                    stay = "trap '' TERM HUP; while :; do sleep 1; done"
                    os.execv("/bin/sh", ["sh", "-c", stay, sys.argv[1]])
                os._exit(0)
    """
    await _leaves_nothing(backend, code)


@check("P2")
async def a_fork_storm_at_exit(backend: Backend) -> None:
    """Processes that keep forking while the main one exits are caught."""
    code = """
        import os, sys
        if os.fork() == 0:
            while True:
                try:
                    if os.fork() == 0: os.setsid()
                    else: os._exit(0)
                except OSError: pass
        os.execv("/bin/sh", ["sh", "-c", "exit 5", sys.argv[1]])
    """
    outcome, seconds = await timed(backend, code, args=("x",))
    ended(outcome, FAILED, exit_code=5)
    expect(seconds < 2, f"took {seconds:.1f} s")
    await _leaves_nothing(backend, code)


@check("P2")
async def stopped_children_are_ended(backend: Backend) -> None:
    """Stopped processes are ended as well."""
    code = """
        import os, subprocess, sys, time
        for _ in range(3): subprocess.Popen(["sh", "-c", "kill -STOP $$", sys.argv[1]])
        time.sleep(0.2); os._exit(0)
    """
    await _leaves_nothing(backend, code)


@check("P2")
async def left_after_a_timeout(backend: Backend) -> None:
    """After a timeout nothing is left either."""
    code = """
        import os, subprocess, sys, time
        stay = ["sh", "-c", "sleep 100; :", sys.argv[1]]
        for _ in range(5): subprocess.Popen(stay, start_new_session=True)
        time.sleep(100)
    """
    await _leaves_nothing(backend, code, timeout_ms=600)


@check("P2")
async def a_cancelled_run_is_ended(backend: Backend) -> None:
    """Cancelling the awaiting task ends the program."""
    marked = marker()
    code = "import subprocess, sys; subprocess.run(['sh', '-c', 'sleep 100; :', sys.argv[1]])"
    task = asyncio.create_task(python(backend, code, args=(marked,), timeout_ms=10_000))
    await asyncio.sleep(0.7)
    task.cancel()
    try:
        outcome = await task
    except asyncio.CancelledError:
        pass
    else:
        expect(outcome.status.value in ("cancelled", "killed"), "a cancelled run", outcome)
    await asyncio.sleep(0.3)
    expect(not host_processes(marked), f"left on the host: {host_processes(marked)}")


@check("P2")
async def zombies_do_no_harm(backend: Backend) -> None:
    """Children that nobody waits for do not hold the run up."""
    code = """
        import os
        for _ in range(40):
            if os.fork() == 0: os._exit(0)
        print("done")
    """
    outcome, seconds = await timed(backend, code)
    printed(outcome, "done\n")
    expect(seconds < 2, f"took {seconds:.1f} s")


@check("P4")
async def descriptors_are_bounded(backend: Backend) -> None:
    """Opening files without end fails with EMFILE; the run goes on."""
    code = """
        import json, os
        held, n = [], 0
        try:
            while n < 200000: held.append(os.open("/dev/null", os.O_RDONLY)); n += 1
        except OSError as e: print(json.dumps([e.errno, n]))
        else: print(json.dumps([0, n]))
    """
    errno, number = told(await python(backend, code))
    expect(errno in (23, 24) and number < 100_000, f"errno {errno} after {number}")


@check("P2")
async def destroy_is_idempotent(backend: Backend) -> None:
    """Destroying twice, or without having run, is no error; a destroyed sandbox is not alive."""
    sandbox = await backend.prepare("python")
    expect(sandbox.alive(), "a prepared sandbox says it is not alive")
    expect(sandbox.flavour == "python", f"flavour {sandbox.flavour!r}")
    await sandbox.destroy()
    expect(not sandbox.alive(), "a destroyed sandbox says it is alive")
    await sandbox.destroy()


@check("P2")
async def concurrent_runs_all_answer(backend: Backend) -> None:
    """Eight runs at the same time each get their own answer."""
    outcomes = await asyncio.gather(
        *(python(backend, f"import time; time.sleep(0.2); print({i})") for i in range(8))
    )
    for number, outcome in enumerate(outcomes):
        ended(outcome, SUCCEEDED)
        expect(outcome.stdout.data == b"%d\n" % number, f"answer {number}", outcome)
