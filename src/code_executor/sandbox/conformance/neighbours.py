"""Two runs at the same time, and one after another: neither sees nor influences the other."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from code_executor.model import Outcome
from code_executor.ports import Backend
from code_executor.sandbox.conformance.bench import (
    SUCCEEDED,
    ended,
    expect,
    marker,
    printed,
    python,
    timed,
    told,
)
from code_executor.sandbox.conformance.registry import check

LEAVE = """
    import ctypes, os, socket, sys, time
    mark = sys.argv[1]
    for d in ("/tmp", "/dev/shm", "/work", "/work/outputs", "/var/tmp", "/run"):
        try: open(f"{d}/{mark}", "w").write(mark)
        except OSError: pass
    held = socket.socket(socket.AF_UNIX); held.bind("\\0" + mark); held.listen()
    tcp = socket.socket()
    try: tcp.bind(("127.0.0.1", 4711)); tcp.listen()
    except OSError: pass
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmget(0x51ab, 4096, 0o1666); libc.msgget(0x51ab, 0o1666); libc.semget(0x51ab, 1, 0o1666)
    try: libc.mq_open(b"/" + mark.encode(), 0o102, 0o666, 0)
    except AttributeError: pass
    os.environ["LEFT"] = mark
"""
LOOK = """
    import ctypes, glob, json, os, socket, sys
    mark, found = sys.argv[1], []
    for root in ("/tmp", "/dev/shm", "/work", "/var/tmp", "/run", "/dev/mqueue"):
        found += [os.path.join(d, n) for d, _, ns in os.walk(root) for n in ns if mark in n]
    try: socket.socket(socket.AF_UNIX).connect("\\0" + mark); found.append("abstract socket")
    except OSError: pass
    try: socket.create_connection(("127.0.0.1", 4711), 0.5); found.append("tcp port")
    except OSError: pass
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.shmget(0x51ab, 0, 0) >= 0: found.append("shared memory")
    if libc.msgget(0x51ab, 0) >= 0: found.append("message queue")
    if libc.semget(0x51ab, 0, 0) >= 0: found.append("semaphore")
    try:
        if libc.mq_open(b"/" + mark.encode(), 0) >= 0: found.append("posix message queue")
    except AttributeError: pass
    for path in glob.glob("/proc/[0-9]*/cmdline") + glob.glob("/proc/[0-9]*/environ"):
        if path.split("/")[2] == str(os.getpid()): continue
        try:
            if mark.encode() in open(path, "rb").read(): found.append(path)
        except OSError: pass
    if "LEFT" in os.environ: found.append("environment")
"""


@check("P6")
async def nothing_is_left_for_the_next(backend: Backend) -> None:
    """The next run of the same kind finds nothing of the one before."""
    for _ in range(3):
        mark = marker()
        ended(await python(backend, LEAVE, args=(mark,)), SUCCEEDED)
        await _finds_nothing(python(backend, f"{LOOK}\n    print(json.dumps(found))", args=(mark,)))


@check("P6")
async def nothing_is_seen_of_the_other(backend: Backend) -> None:
    """Two runs at the same time see nothing of each other: files, processes, ipc, sockets."""
    mark = marker()
    stay = LEAVE + "    time.sleep(1.5)\n"
    look = "    import time; time.sleep(0.7)\n" + LOOK + "    print(json.dumps(found))\n"
    left, seen = await asyncio.gather(
        python(backend, stay, args=(mark,)), python(backend, look, args=(mark,))
    )
    ended(left, SUCCEEDED)
    expect(told(seen) == [], f"seen of the other run: {told(seen)}")


@check("P6")
async def interpreters_keep_nothing(backend: Backend) -> None:
    """What a program does to its interpreter is not there in the next."""
    spoil = """
        import builtins, json, os, random, sys, threading
        builtins.leaked = json.leaked = sys.leaked = os.leaked = threading.leaked = 1
        json.dumps = lambda *a, **k: "spoiled"
        sys.modules["spoiled"] = json
        sys.path.insert(0, "/spoiled"); os.chdir("/tmp"); os.umask(0); random.seed(1)
    """
    look = """
        import builtins, json, os, sys, threading
        bad = [m.__name__ for m in (builtins, json, sys, os, threading) if hasattr(m, "leaked")]
        if "spoiled" in sys.modules or "/spoiled" in sys.path: bad.append("modules or path")
        if os.getcwd() != "/work" or os.umask(0o22) == 0: bad.append("cwd or umask")
        print(json.dumps(bad))
    """
    for _ in range(3):
        ended(await python(backend, spoil), SUCCEEDED)
        await _finds_nothing(python(backend, look))


@check("P6")
async def randomness_is_not_shared(backend: Backend) -> None:
    """Programs forked from one interpreter do not share their randomness."""
    code = """
        import json, os, random, secrets, uuid, tempfile
        print(json.dumps([
            random.random(), secrets.token_hex(8), str(uuid.uuid4()), os.urandom(8).hex(),
            hash("text"), next(tempfile._get_candidate_names()), random.SystemRandom().random(),
        ]))
    """
    rows = [told(await python(backend, code)) for _ in range(3)]
    names = ("random", "secrets", "uuid", "urandom", "hash", "tempfile", "SystemRandom")
    shared = [
        n for n, column in zip(names, zip(*rows, strict=True), strict=True) if len(set(column)) < 3
    ]
    expect(not set(shared) - {"hash"}, f"the same in every run: {shared}")


@check("P6")
async def address_spaces_differ_in_numpy_too(backend: Backend) -> None:
    """A seedless random generator of numpy differs from run to run, where numpy is installed."""
    code = """
        try: import numpy as np
        except ImportError: raise SystemExit("no numpy")
        print(np.random.rand(), np.random.default_rng().random())
    """
    rows = [await python(backend, code) for _ in range(3)]
    if rows[0].status is SUCCEEDED:
        columns = zip(*(row.stdout.data.split() for row in rows), strict=True)
        expect(all(len(set(column)) == 3 for column in columns), "the same numbers", rows[0])


@check("P6")
async def users_differ(backend: Backend) -> None:
    """Two runs at the same time have different users outside, so quotas by user are apart."""
    bomb = """
        import os, time
        try:
            while True:
                if os.fork() == 0: time.sleep(2.5); os._exit(0)
        except OSError: pass
        time.sleep(2)
    """
    watch = """
        import ctypes, errno, os, subprocess, time
        time.sleep(0.8)
        libc = ctypes.CDLL(None, use_errno=True)
        watches = [libc.inotify_init1(0) for _ in range(60)]
        assert min(watches) > 0 or ctypes.get_errno() == errno.ENOSYS, "inotify"
        for _ in range(20): assert subprocess.run(["true"]).returncode == 0
        print("undisturbed")
    """
    _, seen = await asyncio.gather(python(backend, bomb), python(backend, watch))
    printed(seen, "undisturbed\n")


@check("P6")
async def memory_is_accounted_apart(backend: Backend) -> None:
    """A neighbour that runs out of memory takes nobody with it."""
    hog = "x = []\nwhile True: x.append(b'x' * 1000000)"
    calm = "import time; x = b'x' * (40 << 20); time.sleep(1); print('calm')"
    outcomes = await asyncio.gather(
        *(python(backend, hog, memory_mb=64) for _ in range(2)),
        python(backend, calm, memory_mb=100),
    )
    printed(outcomes[-1], "calm\n")


@check("P6")
async def signals_stay_inside(backend: Backend) -> None:
    """Signalling everybody reaches no neighbour."""
    code = "import time; time.sleep(1); print('alive')"
    kill = """
        import os, signal, time
        time.sleep(0.3)
        for target in (-1, 0, *range(2, 300)):
            for number in (signal.SIGTERM, signal.SIGKILL):
                if target in (0, os.getpid()): continue
                try: os.kill(target, number)
                except OSError: pass
    """
    seen, _ = await asyncio.gather(python(backend, code), python(backend, kill))
    printed(seen, "alive\n")


@check("P2")
async def a_neighbours_end_is_its_own(backend: Backend) -> None:
    """Destroying one sandbox leaves another running."""
    long, (short, _) = await asyncio.gather(
        python(backend, "import time; time.sleep(1.2); print('whole')"),
        timed(backend, "import os; os.kill(-1, 9)", timeout_ms=500),
    )
    printed(long, "whole\n")
    expect(short.status is not SUCCEEDED or short.exit_code == 0, "the short one", short)


async def _finds_nothing(run: Any) -> None:
    outcome: Outcome = await run
    ended(outcome, SUCCEEDED)
    found = json.loads(outcome.stdout.data)
    expect(found == [], f"found: {found}")
