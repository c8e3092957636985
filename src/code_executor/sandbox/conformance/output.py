"""The cap on output: what is kept, what is counted, and what ends a flood."""

from __future__ import annotations

import re

from code_executor.model import LimitHit, Outcome
from code_executor.ports import Backend
from code_executor.sandbox.conformance.bench import (
    FAILED,
    KILLED,
    SUCCEEDED,
    ended,
    expect,
    printed,
    python,
    timed,
)
from code_executor.sandbox.conformance.registry import check

SLACK = 200
"""Bytes that the line about left-out output may add to what is kept."""


@check("P4")
async def one_mebibyte_fits(backend: Backend) -> None:
    """Exactly the cap is kept whole; nothing is marked."""
    outcome = await python(backend, "import sys; sys.stdout.write('m' * 1048576)")
    printed(outcome, b"m" * 1_048_576)
    expect(not outcome.stdout.truncated, "truncated is set at exactly the cap")


@check("P4")
async def head_and_tail_are_kept(backend: Backend) -> None:
    """Past the cap the first and last part stay, with a line that counts what was left out."""
    code = """
        import sys
        sys.stdout.write("HEAD\\n" + "x" * 99 + "\\n")
        for i in range(50000): sys.stdout.write(f"line {i:06}\\n")
        sys.stdout.write("TAIL\\n")
        print("complete", file=sys.stderr)
    """
    outcome = await python(backend, code, max_output_bytes=10_000)
    ended(outcome, SUCCEEDED)
    expect(outcome.stderr.data == b"complete\n", "stderr has a cap of its own", outcome)
    data = outcome.stdout.data
    expect(outcome.stdout.truncated, "truncated is not set", outcome)
    expect(len(data) <= 10_000 + SLACK, f"kept {len(data)} bytes of a cap of 10000")
    expect(data.startswith(b"HEAD\n") and data.endswith(b"TAIL\n"), "head or tail lost", outcome)
    expect(outcome.stdout.total_bytes == 5 + 100 + 50_000 * 12 + 5, "total_bytes", outcome)
    left_out = outcome.stdout.total_bytes - _kept(data)
    numbers = re.findall(rb"\d[\d,_]*", _omission_line(data))
    stated = {int(re.sub(rb"[,_]", b"", number)) for number in numbers}
    expect(left_out in stated, f"the line says {stated}, {left_out} bytes were left out", outcome)


@check("P4")
async def a_stream_over_the_cap_still_ends_well(backend: Backend) -> None:
    """Twice the cap is no failure: the program goes on, and its exit code is its own."""
    code = "import sys; sys.stderr.write('e' * 3000000); sys.exit(4)"
    outcome = await python(backend, code)
    ended(outcome, FAILED, exit_code=4, limit_hit=None)
    expect(outcome.stderr.truncated and not outcome.stdout.truncated, "truncated flags", outcome)
    expect(outcome.stderr.total_bytes == 3_000_000, "total_bytes", outcome)


@check("P4")
async def an_endless_flood_is_ended(backend: Backend) -> None:
    """A flood far beyond the cap is killed, well before the deadline, with head and tail."""
    code = "import os\nos.write(1, b'first')\nwhile True: os.write(1, b'y' * 65536)"
    outcome, seconds = await timed(backend, code, timeout_ms=10_000, cpu_ms=20_000)
    _flooded(outcome)
    expect(outcome.stdout.data.startswith(b"first"), "the head is lost", outcome)
    expect(seconds < 9, f"took {seconds:.1f} s")


@check("P4")
async def a_flood_on_stderr_is_ended(backend: Backend) -> None:
    """The same holds for stderr, written by several processes."""
    code = """
        import os
        for _ in range(3): os.fork()
        while True: os.write(2, b"z" * 4096)
    """
    outcome, _ = await timed(backend, code, timeout_ms=10_000, cpu_ms=20_000)
    _flooded(outcome)


@check("P8")
async def bytes_are_not_text(backend: Backend) -> None:
    """Any bytes pass: all 256, NUL, broken UTF-8, no newline at the end."""
    code = r"""
        import os
        os.write(1, bytes(range(256)) + b"\xff\xfe\x00 \xc3")
        os.write(2, b"\x00")
    """
    outcome = await python(backend, code)
    printed(outcome, bytes(range(256)) + b"\xff\xfe\x00 \xc3")
    expect(outcome.stderr.data == b"\x00", "stderr changed", outcome)


@check("P8")
async def many_small_writes_keep_their_order(backend: Backend) -> None:
    """Two hundred thousand small writes arrive in order and complete."""
    code = "import os\nfor i in range(60000): os.write(1, b'%d\\n' % i)"
    printed(await python(backend, code), "".join(f"{i}\n" for i in range(60_000)))


@check("P8")
async def a_closed_stdout_is_the_programs_business(backend: Backend) -> None:
    """A program that closes stdout goes on; what it printed before is kept."""
    code = """
        import os, sys, time
        print("before", flush=True)
        os.close(1); os.close(2)
        time.sleep(0.3)
        os._exit(5)
    """
    outcome = await python(backend, code)
    ended(outcome, FAILED, exit_code=5)
    expect(outcome.stdout.data == b"before\n", "expected what was printed before", outcome)


@check("P8")
async def words_of_the_service_are_just_output(backend: Backend) -> None:
    """Output that looks like frames, statuses or records of the service stays output."""
    words = [
        b'{"status":"succeeded","exit_code":0}\n',
        b"\x00\x00\x00\x01\x00\x00\x00\x05EXIT\x00" * 50,
        b"".join(bytes([kind]) + (8).to_bytes(4, "little") + b"\0" * 8 for kind in range(40)),
        b"".join(bytes([kind]) + (8).to_bytes(4, "big") + b"\0" * 8 for kind in range(40)),
        b"OOM\nTIMEOUT\nexit 0\n__EXIT__ 0\n",
    ]
    code = (
        "import os, sys; d = sys.stdin.buffer.read(); os.write(1, d); os.write(2, d); os._exit(3)"
    )
    for word in words:
        outcome = await python(backend, code, stdin=word.decode("latin-1"))
        wanted = word.decode("latin-1").encode()
        ended(outcome, FAILED, exit_code=3, reason=None)
        expect(outcome.stdout.data == wanted == outcome.stderr.data, "output changed", outcome)


def _flooded(outcome: Outcome) -> None:
    ended(outcome, KILLED, limit_hit=LimitHit.OUTPUT)
    expect(outcome.reason, "killed without a reason", outcome)


def _omission_line(data: bytes) -> bytes:
    """The line between head and tail: the one that is not the program's."""
    lines = data.split(b"\n")
    odd = [line for line in lines if b"omitted" in line or b"left out" in line]
    expect(len(odd) == 1, f"no line says how much was left out, in {data[:80]!r}…")
    return odd[0]


def _kept(data: bytes) -> int:
    """Bytes of the program's own in ``data``: everything but the line and the breaks around it."""
    line = _omission_line(data)
    head, tail = data.split(line)
    return len(head.removesuffix(b"\n")) + len(tail.removeprefix(b"\n"))
