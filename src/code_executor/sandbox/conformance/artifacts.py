"""Files out: regular files below ``outputs/`` come back as plain bytes, and nothing else does."""

from __future__ import annotations

import hashlib

from code_executor.model import MIB, Outcome
from code_executor.ports import Backend
from code_executor.sandbox.conformance.bench import (
    FAILED,
    OOM,
    SUCCEEDED,
    TIMEOUT,
    ended,
    expect,
    python,
    timed,
)
from code_executor.sandbox.conformance.registry import check

FEW_SECONDS = 8


@check("P5")
async def files_come_back(backend: Backend) -> None:
    """Files below outputs/ come back under their relative names, byte for byte."""
    code = """
        import os
        os.makedirs("outputs/a/b/c")
        open("outputs/one.txt", "w").write("one")
        open("outputs/a/b/c/two.bin", "wb").write(bytes(range(256)) * 1000)
        open("outputs/empty", "w").close()
        open("beside.txt", "w").write("not an output")
        os.mkdir("outputs/empty-dir")
    """
    outcome = await python(backend, code)
    ended(outcome, SUCCEEDED)
    wanted = {"one.txt": b"one", "a/b/c/two.bin": bytes(range(256)) * 1000, "empty": b""}
    expect(files(outcome) == wanted, f"came back: {sorted(files(outcome))}")
    expect(not outcome.skipped, f"skipped: {outcome.skipped}")


@check("P5")
async def no_outputs_is_no_error(backend: Backend) -> None:
    """A program may remove the directory, or leave it empty."""
    for code in ("pass", "import os; os.rmdir('outputs')"):
        outcome = await python(backend, code)
        ended(outcome, SUCCEEDED, artifacts=(), skipped=())


@check("P5")
async def input_files_are_not_returned(backend: Backend) -> None:
    """Neither the inputs nor the sources are artifacts."""
    outcome = await python(backend, "pass", files={"in.txt": b"x"}, sources={"m.py": ""})
    ended(outcome, SUCCEEDED, artifacts=())


@check("P5")
async def too_large_files_are_named(backend: Backend) -> None:
    """A file over the cap is left out, named with its size and a reason; one at the cap is kept."""
    code = """
        open("outputs/at.bin", "wb").write(b"x" * 100000)
        open("outputs/over.bin", "wb").write(b"x" * 100001)
        open("outputs/sparse.bin", "wb").truncate(1 << 40)
    """
    outcome, seconds = await timed(backend, code, max_artifact_bytes=100_000)
    ended(outcome, SUCCEEDED)
    expect(files(outcome) == {"at.bin": b"x" * 100_000}, f"came back: {sorted(files(outcome))}")
    sizes = {item.name: item.size for item in outcome.skipped}
    expect(sizes == {"over.bin": 100_001, "sparse.bin": 1 << 40}, f"skipped: {outcome.skipped}")
    expect(all(item.reason for item in outcome.skipped), f"no reason: {outcome.skipped}")
    expect(seconds < 3, f"took {seconds:.1f} s")


@check("P5")
async def too_many_files_are_named(backend: Backend) -> None:
    """Files past the number are left out and named."""
    code = "for i in range(14): open(f'outputs/{i:02}', 'w').write(str(i))"
    outcome = await python(backend, code, max_artifact_files=10)
    ended(outcome, SUCCEEDED)
    names = {*files(outcome), *(item.name for item in outcome.skipped)}
    expect(len(outcome.artifacts) == 10, f"{len(outcome.artifacts)} came back")
    expect(names == {f"{i:02}" for i in range(14)}, f"named: {sorted(names)}")


@check("P5")
async def every_file_at_the_cap(backend: Backend) -> None:
    """Ten files of 5 MiB each come back whole."""
    code = "for i in range(10): open(f'outputs/{i}', 'wb').write(bytes([i]) * (5 << 20))"
    outcome = await python(backend, code, memory_mb=512)
    ended(outcome, SUCCEEDED)
    wanted = {str(i): digest(bytes([i]) * 5 * MIB) for i in range(10)}
    expect({k: digest(v) for k, v in files(outcome).items()} == wanted, "bytes changed")


@check("P5")
async def links_are_not_followed(backend: Backend) -> None:
    """Symbolic links, to files or directories, inside or out, bring nothing back."""
    code = """
        import os
        open("secret", "w").write("work")
        targets = {"passwd": "/etc/passwd", "root": "/", "etc": "/etc", "work": "../secret",
                   "up": "..", "self": "self", "dangling": "nowhere", "proc": "/proc/1/environ",
                   "mem": "/proc/self/mem", "absolute": "/work/secret"}
        for name, target in targets.items(): os.symlink(target, "outputs/" + name)
        open("outputs/real", "w").write("real")
        os.symlink("real", "outputs/alias")
    """
    outcome, seconds = await timed(backend, code)
    ended(outcome, SUCCEEDED)
    expect(files(outcome) == {"real": b"real"}, f"came back: {sorted(files(outcome))}")
    expect(seconds < 3, f"took {seconds:.1f} s")


@check("P5")
async def hard_links_are_not_returned(backend: Backend) -> None:
    """A file with more than one name is not returned: it may be something else's."""
    code = """
        import os
        open("outside", "w").write("x")
        os.link("outside", "outputs/inside")
        open("outputs/single", "w").write("y")
        for target in ("/etc/passwd", "/usr/bin/python3"):
            try: os.link(target, "outputs/stolen")
            except OSError: pass
    """
    outcome = await python(backend, code)
    ended(outcome, SUCCEEDED)
    expect(files(outcome) == {"single": b"y"}, f"came back: {sorted(files(outcome))}")


@check("P5")
async def special_files_are_not_opened(backend: Backend) -> None:
    """Fifos, sockets and devices neither come back nor hold the collection up."""
    code = """
        import os, socket, stat
        os.mkfifo("outputs/fifo")
        socket.socket(socket.AF_UNIX).bind("outputs/socket")
        for name, kind in (("null", stat.S_IFCHR), ("block", stat.S_IFBLK)):
            try: os.mknod("outputs/" + name, kind | 0o666, os.makedev(1, 3))
            except OSError: pass
        open("outputs/real", "w").write("real")
    """
    outcome, seconds = await timed(backend, code)
    ended(outcome, SUCCEEDED)
    expect(files(outcome) == {"real": b"real"}, f"came back: {sorted(files(outcome))}")
    expect(seconds < 3, f"took {seconds:.1f} s")


@check("P5")
async def a_fifo_with_writers_and_readers(backend: Backend) -> None:
    """A fifo that children hold open at both ends holds nothing up."""
    code = """
        import os, time
        os.mkfifo("outputs/fifo")
        if os.fork() == 0:
            fd = os.open("outputs/fifo", os.O_RDWR)
            while True: os.write(fd, b"x" * 100); time.sleep(0.1)
        time.sleep(0.2)
        open("outputs/real", "w").write("real")
    """
    outcome, seconds = await timed(backend, code)
    ended(outcome, SUCCEEDED)
    expect(files(outcome) == {"real": b"real"}, f"came back: {sorted(files(outcome))}")
    expect(seconds < 3, f"took {seconds:.1f} s")


@check("P5")
async def unreadable_modes(backend: Backend) -> None:
    """Modes are no obstacle to a clear answer: returned, or skipped with a reason."""
    code = """
        import os
        os.makedirs("outputs/closed/in"); os.makedirs("outputs/x-only")
        for name in ("closed/in/a", "x-only/b", "none", "write-only", "setuid"):
            open("outputs/" + name, "w").write("data")
        os.chmod("outputs/none", 0); os.chmod("outputs/write-only", 0o200)
        os.chmod("outputs/setuid", 0o6755)
        os.chmod("outputs/closed", 0); os.chmod("outputs/x-only", 0o111); os.chmod("outputs", 0o100)
    """
    outcome = await python(backend, code)
    ended(outcome, SUCCEEDED)
    expect(all(v == b"data" for v in files(outcome).values()), "bytes changed")
    expect(all(item.reason for item in outcome.skipped), f"no reason: {outcome.skipped}")


@check("P5")
async def odd_names_are_data(backend: Backend) -> None:
    """Names of any shape are data: none escapes, none breaks the collection."""
    code = r"""
        import os
        names = [b"sp ace", "ünï 日本 🎉".encode(), b"-rf", b"quote'\"`$(x);|&", b"back\\slash",
                 b"...", b"..hidden", b"new\nline", b"tab\t", b"\x01\x7f\x1b[31m", b"\xff\xfe",
                 b"\xc3", b"%2e%2e%2f", b"x" * 255]
        for name in names:
            with open(b"outputs/" + name, "wb") as f: f.write(name)
    """
    outcome = await python(backend, code, max_artifact_files=10)
    ended(outcome, SUCCEEDED)
    plain = {"sp ace", "ünï 日本 🎉", "-rf"}
    seen = [*files(outcome), *(item.name for item in outcome.skipped)]
    expect(plain <= set(seen), f"missing: {plain - set(seen)} in {seen}")
    expect(all(isinstance(name, str) and name for name in seen), f"names: {seen}")
    for name, content in files(outcome).items():
        expect(".." not in name.split("/") and not name.startswith("/"), f"name {name!r}")
        same = name.encode("utf-8", "surrogateescape") == content or "�" in name or "\\" in name
        expect(same, f"{name!r} holds {content!r}")


@check("P5")
async def outputs_replaced_by_a_link(backend: Backend) -> None:
    """When outputs/ itself becomes a link, nothing behind it comes back."""
    for target in ("/etc", "/", "/proc/1/root/etc", ".", "inputs"):
        code = f"import os; os.rmdir('outputs'); os.symlink({target!r}, 'outputs')"
        outcome = await python(backend, code, files={"in.txt": b"x"})
        ended(outcome, SUCCEEDED, artifacts=())


@check("P5")
async def outputs_deleted_and_made_again(backend: Backend) -> None:
    """A program that makes outputs/ anew still gets its files back, or is told why not."""
    code = """
        import os, shutil
        shutil.rmtree("outputs"); os.mkdir("outputs"); open("outputs/x", "w").write("new")
    """
    outcome = await python(backend, code)
    ended(outcome, SUCCEEDED)
    expect(files(outcome) == {"x": b"new"}, f"came back: {files(outcome)}, {outcome.skipped}")


@check("P5")
async def outputs_replaced_by_a_file(backend: Backend) -> None:
    """When outputs is a file, a fifo or a socket, nothing comes back and nothing hangs."""
    for make in ("open('outputs', 'w').write('x')", "os.mkfifo('outputs')"):
        outcome, seconds = await timed(backend, f"import os; os.rmdir('outputs'); {make}")
        ended(outcome, SUCCEEDED, artifacts=())
        expect(seconds < 3, f"took {seconds:.1f} s")


@check("P5")
async def work_itself_renamed_away(backend: Backend) -> None:
    """Moving directories about leads the collection nowhere."""
    code = """
        import os
        os.mkdir("outputs/d"); open("outputs/d/f", "w").write("x")
        os.rename("outputs", "elsewhere"); os.symlink("/etc", "outputs")
        try: os.rename("/work", "/tmp/work")
        except OSError: pass
    """
    outcome = await python(backend, code)
    ended(outcome, SUCCEEDED)
    expect(set(files(outcome).values()) <= {b"x"}, f"came back: {sorted(files(outcome))}")


@check("P5")
async def deep_trees_are_bounded(backend: Backend) -> None:
    """A tree two thousand levels deep ends the walk, not the service."""
    code = """
        import os
        open("outputs/a-top", "w").write("top")
        os.chdir("outputs")
        for i in range(2000): os.mkdir("d"); os.chdir("d")
        open("bottom", "w").write("bottom")
    """
    outcome, seconds = await timed(backend, code)
    ended(outcome, SUCCEEDED)
    expect(files(outcome).get("a-top") == b"top", f"came back: {[n[:50] for n in files(outcome)]}")
    expect(seconds < FEW_SECONDS, f"took {seconds:.1f} s")


@check("P5")
async def a_hundred_thousand_entries(backend: Backend) -> None:
    """As many files as the sandbox lets be made end the walk within its bounds."""
    code = """
        import os
        made = 0
        try:
            for made in range(100000): os.close(os.open(f"outputs/{made:06}", os.O_CREAT))
        except OSError as e: print(e.errno)
        print(made > 1000)
    """
    outcome, seconds = await timed(backend, code, timeout_ms=60_000, cpu_ms=60_000)
    ended(outcome, SUCCEEDED)
    expect(b"True" in outcome.stdout.data, "not even a thousand files could be made", outcome)
    expect(len(outcome.artifacts) == 10, f"{len(outcome.artifacts)} came back")
    expect(len(outcome.skipped) <= 5_000, f"{len(outcome.skipped)} skipped files are listed")
    walking = seconds - outcome.usage.wall_ms / 1000
    expect(walking < 12, f"the walk took {walking:.1f} s")


@check("P5")
async def replaced_during_the_collection(backend: Backend) -> None:
    """A process that keeps swapping a file for a link gains nothing: it is dead by then."""
    code = """
        import os
        open("outputs/f", "w").write("mine")
        if os.fork() == 0:
            os.setsid()
            while True:
                try:
                    os.symlink("/etc/passwd", "outputs/t"); os.rename("outputs/t", "outputs/f")
                    open("outputs/u", "w").write("mine"); os.rename("outputs/u", "outputs/f")
                except OSError: pass
        import time; time.sleep(0.3)
    """
    for _ in range(5):
        outcome = await python(backend, code)
        ended(outcome, SUCCEEDED)
        expect(set(files(outcome).values()) <= {b"mine", b""}, f"came back: {files(outcome)}")


@check("P5")
async def a_file_still_growing(backend: Backend) -> None:
    """A file that a child keeps appending to comes back with one size and that many bytes."""
    code = """
        import os, time
        if os.fork() == 0:
            with open("outputs/log", "w", buffering=1) as f:
                while True: f.write("line\\n")
        time.sleep(0.3)
    """
    outcome = await python(backend, code, max_artifact_bytes=20 * MIB)
    ended(outcome, SUCCEEDED)
    named = [*files(outcome), *(item.name for item in outcome.skipped)]
    expect(named == ["log"], f"named: {named}")


@check("P3")
async def kept_when_the_time_is_over(backend: Backend) -> None:
    """Artifacts made before a timeout are returned."""
    code = """
        import time
        open("outputs/partial.txt", "w").write("so far")
        print("printed", flush=True)
        time.sleep(30)
    """
    outcome = await python(backend, code, timeout_ms=700)
    ended(outcome, TIMEOUT)
    expect(files(outcome) == {"partial.txt": b"so far"}, f"came back: {files(outcome)}")


@check("P4")
async def kept_when_memory_is_over(backend: Backend) -> None:
    """Artifacts made before an out-of-memory kill are returned."""
    code = """
        open("outputs/partial.txt", "w").write("so far")
        print("printed", flush=True)
        x = []
        while True: x.append(b"x" * (8 << 20))
    """
    outcome = await python(backend, code, memory_mb=64)
    ended(outcome, OOM)
    expect(files(outcome) == {"partial.txt": b"so far"}, f"came back: {files(outcome)}")
    expect(outcome.stdout.data == b"printed\n", "partial output lost", outcome)


@check("P5")
async def kept_when_the_program_fails(backend: Backend) -> None:
    """Artifacts of a program that fails or crashes are returned."""
    code = "import os; open('outputs/f', 'w').write('x'); os.kill(os.getpid(), 11)"
    outcome = await python(backend, code)
    ended(outcome, FAILED, signal="SIGSEGV")
    expect(files(outcome) == {"f": b"x"}, f"came back: {files(outcome)}")


def files(outcome: Outcome) -> dict[str, bytes]:
    """The artifacts by name."""
    return {item.name: item.content for item in outcome.artifacts}


def digest(content: bytes) -> str:
    """What to compare instead of megabytes."""
    return hashlib.sha256(content).hexdigest()
