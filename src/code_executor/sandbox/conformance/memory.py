"""The memory limit, in all the places where memory can hide."""

from __future__ import annotations

from code_executor.model import LimitHit, Outcome
from code_executor.ports import Backend
from code_executor.sandbox.conformance.bench import (
    FAILED,
    OOM,
    SUCCEEDED,
    TIMEOUT,
    ended,
    expect,
    printed,
    python,
    told,
)
from code_executor.sandbox.conformance.registry import check

LIMIT_MB = 100


async def _runs_out(backend: Backend, code: str, **limits: int) -> Outcome:
    """``code`` prints ``begin`` and takes more than ``LIMIT_MB``; it must be ended for it."""
    chosen = {"memory_mb": LIMIT_MB, "timeout_ms": 10_000, "cpu_ms": 20_000} | limits
    outcome = await python(backend, code, **chosen)
    ended(outcome, OOM, limit_hit=LimitHit.MEMORY)
    expect(outcome.stdout.data.startswith(b"begin\n"), "partial output lost", outcome)
    peak = outcome.usage.max_rss_mb
    expect(LIMIT_MB * 0.7 <= peak <= LIMIT_MB + 16, f"peak of {peak} MiB of {LIMIT_MB}")
    return outcome


@check("P4")
async def on_the_heap(backend: Backend) -> None:
    """Objects on the heap."""
    code = "print('begin', flush=True)\nx = []\nwhile True: x.append(b'x' * 1000000)"
    outcome = await _runs_out(backend, code)
    expect(outcome.signal in (None, "SIGKILL"), "signal", outcome)


@check("P4")
async def in_one_go(backend: Backend) -> None:
    """One huge object."""
    await _runs_out(backend, "print('begin', flush=True)\nx = b'x' * (1 << 30)")


@check("P4")
async def in_mappings(backend: Backend) -> None:
    """Anonymous shared mappings, which no process's own size shows."""
    code = """
        import mmap
        print("begin", flush=True)
        m = mmap.mmap(-1, 1 << 30)
        for i in range(0, 1 << 30, 4096): m[i] = 1
    """
    await _runs_out(backend, code)


@check("P4")
async def in_many_processes(backend: Backend) -> None:
    """Many processes with little each."""
    code = """
        import os, time
        print("begin", flush=True)
        for _ in range(40):
            if os.fork() == 0:
                x = bytearray(os.urandom(1 << 20) * 8); time.sleep(8); os._exit(0)
        while True: os.wait()
    """
    outcome = await python(backend, code, memory_mb=LIMIT_MB, timeout_ms=4_000)
    expect(outcome.status in (OOM, TIMEOUT), "40 processes of 8 MiB fit into 100 MiB", outcome)
    ended(outcome, OOM, limit_hit=LimitHit.MEMORY)


async def _fills(backend: Backend, directory: str) -> None:
    """Filling a memory-backed directory ends in ENOSPC or in an out-of-memory kill."""
    code = f"""
        print("begin", flush=True)
        written = 0
        with open("{directory}/fill", "wb") as f:
            try:
                while True: written += f.write(bytes(1 << 20)); f.flush()
            except OSError as e: print(e.errno)
        print(written >> 20)
    """
    outcome = await python(backend, code, memory_mb=LIMIT_MB, timeout_ms=10_000)
    if outcome.status is not OOM:
        ended(outcome, SUCCEEDED)
        _, errno, written = outcome.stdout.data.split()
        expect(errno == b"28", "expected ENOSPC", outcome)
        expect(int(written) <= LIMIT_MB, f"{int(written)} MiB fit", outcome)
    peak = outcome.usage.max_rss_mb
    expect(peak <= LIMIT_MB + 16, f"peak of {peak} MiB of {LIMIT_MB}")


@check("P4")
async def in_work(backend: Backend) -> None:
    """Files in /work."""
    await _fills(backend, "/work")


@check("P4")
async def in_tmp(backend: Backend) -> None:
    """Files in /tmp."""
    await _fills(backend, "/tmp")


@check("P4")
async def in_shm(backend: Backend) -> None:
    """Files in /dev/shm."""
    await _fills(backend, "/dev/shm")


@check("P4")
async def in_all_places_at_once(backend: Backend) -> None:
    """The places share one account."""
    code = """
        print("begin", flush=True)
        keep = [bytearray(b"x") * (30 << 20)]
        for d in ("/work", "/tmp", "/dev/shm"):
            try: open(d + "/fill", "wb").write(b"x" * (30 << 20))
            except OSError: print("refused")
    """
    outcome = await python(backend, code, memory_mb=LIMIT_MB)
    held = outcome.status is OOM or b"refused" in outcome.stdout.data
    expect(held, "120 MiB fit into 100 MiB", outcome)


@check("P4")
async def in_unlinked_files_and_memfds(backend: Backend) -> None:
    """Files without a name: deleted but open, and memfd."""
    code = """
        import os
        print("begin", flush=True)
        fds = [os.memfd_create(str(i)) for i in range(20)]
        for fd in fds:
            for _ in range(16): os.write(fd, b"x" * (1 << 20))
    """
    await _runs_out(backend, code)


@check("P4")
async def in_pipes_and_sockets(backend: Backend) -> None:
    """Buffers in the kernel cannot pass the limit by much."""
    code = """
        import os, socket
        held = []
        try:
            while True:
                a, b = socket.socketpair(); a.setblocking(False); held.append((a, b))
                try:
                    while True: a.send(b"x" * 65536)
                except BlockingIOError: pass
        except OSError as e: print(f"[{e.errno}, {len(held)}]")
    """
    outcome = await python(backend, code, memory_mb=LIMIT_MB)
    expect(outcome.status is OOM or told(outcome), "neither refused nor ended", outcome)
    peak = outcome.usage.max_rss_mb
    expect(peak <= LIMIT_MB + 16, f"peak of {peak} MiB of {LIMIT_MB}")


@check("P4")
async def there_is_no_swap(backend: Backend) -> None:
    """Memory that is never touched again is not written somewhere else."""
    code = """
        import mmap
        print("begin", flush=True)
        for i in range(300):
            globals()[f"m{i}"] = m = mmap.mmap(-1, 1 << 20)
            m.write(bytes([i & 255]) * (1 << 20))
    """
    await _runs_out(backend, code)


@check("P4")
async def page_cache_is_given_back(backend: Backend) -> None:
    """Reading large files does not count against a program for good."""
    code = """
        import os, shutil
        n = 0
        for root, _, names in os.walk("/usr/lib"):
            for name in names:
                path = os.path.join(root, name)
                if os.path.isfile(path) and not os.path.islink(path):
                    with open(path, "rb") as f:
                        while d := f.read(1 << 20): n += len(d)
                if n > 96 << 20: break
            if n > 96 << 20: break
        print(n)
    """
    outcome = await python(backend, code, memory_mb=64, timeout_ms=10_000, cpu_ms=10_000)
    expect(told(outcome) > 64 << 20, "too little was read to prove anything", outcome)


@check("P8")
async def a_handled_memory_error_is_no_oom(backend: Backend) -> None:
    """A refusal that the program handles is its own business."""
    code = """
        try: x = bytearray(1 << 62)
        except (MemoryError, OverflowError): print("handled")
    """
    printed(await python(backend, code), "handled\n")


@check("P8")
async def killing_oneself_is_no_oom(backend: Backend) -> None:
    """SIGKILL by its own hand, and exit code 137, are failures and no oom."""
    kill = "import os, signal; x = b'x' * (50 << 20); os.kill(os.getpid(), signal.SIGKILL)"
    ended(await python(backend, kill), FAILED, signal="SIGKILL", limit_hit=None)
    ended(await python(backend, "raise SystemExit(137)"), FAILED, exit_code=137, limit_hit=None)


@check("P4")
async def a_child_that_runs_out(backend: Backend) -> None:
    """When the kernel ends a child for memory the run is oom, whatever the parent says."""
    code = """
        import os
        print("begin", flush=True)
        if os.fork() == 0:
            x = []
            while True: x.append(b"x" * 1000000)
        os.wait(); print("parent lives")
    """
    outcome = await python(backend, code, memory_mb=LIMIT_MB)
    ended(outcome, OOM, limit_hit=LimitHit.MEMORY)


@check("P4")
async def just_below_the_limit(backend: Backend) -> None:
    """Most of the limit is really there for the program."""
    code = f"x = b'x' * ({LIMIT_MB - 35} << 20); print(len(x) >> 20)"
    printed(await python(backend, code, memory_mb=LIMIT_MB), f"{LIMIT_MB - 35}\n")


@check("P4")
async def inodes_are_bounded(backend: Backend) -> None:
    """Empty files cost kernel memory: their number ends, in ENOSPC or in oom."""
    code = """
        import os
        made = 0
        try:
            while made < 1000000:
                os.close(os.open(f"/tmp/{made}", os.O_CREAT | os.O_WRONLY)); made += 1
        except OSError as e: print(e.errno, made)
    """
    outcome = await python(backend, code, memory_mb=256, timeout_ms=10_000, cpu_ms=10_000)
    if outcome.status is not OOM:
        ended(outcome, SUCCEEDED)
        expect(outcome.stdout.data.startswith(b"28 "), "a million files could be made", outcome)
