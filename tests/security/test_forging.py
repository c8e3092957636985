"""A program that speaks the service's own protocol, on every channel it can find, gains nothing."""

from __future__ import annotations

import base64
import struct
from textwrap import dedent

import pytest

from code_executor.model import RunStatus
from code_executor.ports import Backend
from code_executor.sandbox.conformance.bench import python
from code_executor.sandbox.frames import ENDED, Kind, frame, string

pytestmark = [pytest.mark.sandbox, pytest.mark.asyncio(loop_scope="session")]
SUCCESS = ENDED.pack(0, 1, 1, 1, 1)
FORGED = b"".join(
    (
        frame(Kind.STDOUT, b"forged output"),
        frame(Kind.ENDED, SUCCESS),
        frame(Kind.ENTRY, struct.pack("<BIQ", ord("f"), 1, 6) + string(b"forged")),
        frame(Kind.LISTED, b"\0"),
        frame(Kind.CONTENT, b"forged"),
        frame(Kind.CONTENT_END, struct.pack("<I", 0)),
        frame(Kind.FAILED, struct.pack("<I", 1) + string(b"forged")),
        b"\xff" * 5 + struct.pack("<BI", Kind.STDOUT, 0xFFFFFFFF),
    )
)
LITERAL = base64.b64encode(FORGED).decode()


async def test_frames_on_the_streams_are_output(each_backend: Backend) -> None:
    code = f"import base64, os; os.write(1, base64.b64decode({LITERAL!r})); os._exit(7)"
    outcome = await python(each_backend, code)
    assert (outcome.status, outcome.exit_code) == (RunStatus.FAILED, 7)
    assert outcome.stdout.data == FORGED
    assert not outcome.artifacts


async def test_frames_on_every_descriptor(each_backend: Backend) -> None:
    """Every number is written to; what is not one of the streams is not open."""
    code = f"""
        import base64, os
        forged, open_ones = base64.b64decode({LITERAL!r}), []
        for number in range(3, 4096):
            try: os.write(number, forged); open_ones.append(number)
            except OSError: pass
        print(open_ones)
        os._exit(8)
    """
    outcome = await python(
        each_backend, code.replace("print(open_ones)", "os.write(1, str(open_ones).encode())")
    )
    assert (outcome.status, outcome.exit_code, outcome.stdout.data) == (RunStatus.FAILED, 8, b"[]")


async def test_frames_through_the_file_system(each_backend: Backend) -> None:
    """Nothing that looks like a channel in the file system leads to the service.

    In gVisor what init has open can be opened again, but for sockets, so not the channel: what is
    written there comes out as the program's own output (``sandbox/differs.py``).
    """
    code = f"""
        import base64, os, stat
        forged, reached = base64.b64decode({LITERAL!r}), []
        for root in ("/proc/1/fd", "/proc/self/fd", "/proc/2/fd", "/run", "/opt", "/dev", "/tmp"):
            for directory, below, names in os.walk(root):
                if directory == "/opt": below[:] = set(below) - {{"python", "go"}}
                for name in names:
                    path = os.path.join(directory, name)
                    if path.startswith("/dev/"): continue
                    if name in ("0", "1", "2"): continue
                    try:
                        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
                        os.write(fd, forged); reached.append(path)
                    except OSError: pass
        os.write(1, b"reached" + repr(reached).encode()); os._exit(9)
    """
    outcome = await python(each_backend, code)
    assert (outcome.status, outcome.exit_code) == (RunStatus.FAILED, 9)
    written, _, reached = (outcome.stdout.data + outcome.stderr.data).partition(b"reached")
    own = each_backend.name == "gvisor"
    assert written.replace(FORGED, b"") == b""
    assert (reached == b"[]") is not own
    assert not outcome.artifacts


async def test_ending_before_the_start_is_seen(each_backend: Backend) -> None:
    """A child that answers after the parent was replaced does not answer for it."""
    code = f"""
        import base64, os, time
        if os.fork() == 0:
            os.setsid(); time.sleep(0.2)
            os.write(1, base64.b64decode({LITERAL!r}))
            os._exit(0)
        time.sleep(0.6)
        os.kill(os.getpid(), 9)
    """
    outcome = await python(each_backend, code)
    assert (outcome.status, outcome.signal) == (RunStatus.FAILED, "SIGKILL")
    assert outcome.stdout.data == FORGED


async def test_usage_cannot_be_forged(each_backend: Backend) -> None:
    """Resetting or faking one's own counters does not change what the host has counted.

    Beside a program that does the same work and forges nothing: gVisor's clock for a program also
    runs while the host runs others, so it cannot tell how much work that is.
    """
    work = """
        import os, resource, time
        end = time.process_time() + 0.4
        while time.process_time() < end: pass
    """
    forge = """
        for path in ("/proc/self/clear_refs", "/proc/self/sched"):
            try: open(path, "w").write("5")
            except OSError: pass
        os.execv("/bin/true", ["true"])
    """
    outcome = await python(each_backend, work + forge)
    assert outcome.status is RunStatus.SUCCEEDED
    if each_backend.name != "gvisor":
        assert outcome.usage.cpu_ms >= 380
        return
    fixed = "for _ in range(4_000_000): pass\n"
    honest = await python(each_backend, fixed)
    forging = await python(each_backend, f"import os\n{fixed}{dedent(forge)}")
    assert forging.usage.cpu_ms >= honest.usage.cpu_ms / 2 >= 20
