"""Init's C, built with sanitizers: driven through its channel, and fuzzed.

``tests/c`` has the two programs: ``drive_init`` is init with only the namespaces taken away, spoken
to here with the service's own :mod:`~code_executor.sandbox.frames`; ``fuzz_frames`` feeds its frame
handlers with seeds made here and changed at random: by libFuzzer where clang has it, else by a
loop that does the same turns on every machine. Both run as PID 1 of a pid namespace, with a small
root of their own: what is killed and written there is theirs.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from code_executor.sandbox import frames
from code_executor.sandbox.build import SOURCES, WARNINGS
from code_executor.sandbox.frames import Ended, Kind, frame

C = Path(__file__).parents[1] / "c"
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1")
FLAGS = ("-std=c11", "-D_GNU_SOURCE", *WARNINGS, *SANITIZE, f"-I{SOURCES}", f"-I{C}")
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",  # giving up leaves memory to the kernel
    "UBSAN_OPTIONS": "print_stacktrace=1:abort_on_error=1",
    "PATH": "/usr/bin:/bin",
}
FUZZ_SECONDS = int(os.environ.get("FUZZ_SECONDS", "8"))
FUZZ_TURNS = 200_000
PATIENCE_S = 20.0


def compiled(target: Path, *arguments: str | Path, compiler: str = "cc") -> Path:
    subprocess.run([compiler, *FLAGS, "-o", target, *arguments], check=True)
    return target


def sources(*names: str) -> list[Path]:
    return [SOURCES / f"{name}.c" for name in names]


# ── driving ──


@pytest.fixture(scope="module")
def drive_init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver, built once."""
    return compiled(
        tmp_path_factory.mktemp("drive") / "drive_init",
        C / "drive_init.c",
        C / "place.c",
        *sources("proto", "stage", "collect", "program", "init", "job", "ending"),
    )


class Init:
    """A running init and the host's end of its channel; ``leave`` expects it to end well."""

    def __init__(self, program: Path, place: Path, *mode: str) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(PATIENCE_S)
        self._decoder = frames.Decoder()
        self._frames: list[tuple[Kind, bytes]] = []
        command = 'exec 3<&"$1"; shift; exec "$@"'
        self.process = subprocess.Popen(
            ["/bin/bash", "-c", command, "-", str(theirs.fileno()), program, place, *mode],
            pass_fds=(theirs.fileno(),),
            env=OPTIONS,
            stderr=subprocess.PIPE,
        )
        theirs.close()

    def send(self, *said: bytes) -> None:
        self.sock.sendall(b"".join(said))

    def next(self) -> tuple[Kind, bytes]:
        """The next frame."""
        while not self._frames:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError(self.words())
            self._frames += self._decoder.feed(data)
        return self._frames.pop(0)

    def expect(self, kind: Kind) -> bytes:
        got, payload = self.next()
        assert got is kind, (got, payload)
        return payload

    def until(self, *last: Kind) -> list[tuple[Kind, bytes]]:
        """Frames up to and with the first one of ``last``."""
        got = [self.next()]
        while got[-1][0] not in last:
            got.append(self.next())
        return got

    def words(self) -> str:
        """What the sanitizers had to say."""
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def leave(self, code: int = 0) -> None:
        self.sock.close()
        assert self.process.wait(PATIENCE_S) == code, self.words()
        assert self.words() == ""
        assert self.process.stderr is not None
        self.process.stderr.close()

    def kill(self) -> None:
        self.sock.close()
        self.process.kill()
        self.process.wait(PATIENCE_S)
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.fixture
def init(drive_init: Path, tmp_path: Path) -> Iterator[Init]:
    """An init without a warm interpreter."""
    made = Init(drive_init, tmp_path, "none")
    made.expect(Kind.READY)
    yield made
    made.kill()


def shell(script: str, *args: str, listing: bool = True) -> bytes:
    argv = ["/bin/sh", "-c", script, "sh", *args]
    return frames.program(warm=False, listing=listing, argv=argv, env=["A=1", "B=2"])


def streams(got: list[tuple[Kind, bytes]]) -> tuple[bytes, bytes]:
    out = b"".join(payload for kind, payload in got if kind is Kind.STDOUT)
    err = b"".join(payload for kind, payload in got if kind is Kind.STDERR)
    return out, err


def ran(init: Init, *said: bytes) -> tuple[Ended, bytes, bytes, list[frames.Entry]]:
    """A program's whole life."""
    init.send(*said)
    init.expect(Kind.BEGAN)
    got = init.until(Kind.LISTED)
    (ended,) = [frames.decode_ended(payload) for kind, payload in got if kind is Kind.ENDED]
    listed = [frames.decode_entry(payload) for kind, payload in got if kind is Kind.ENTRY]
    return ended, *streams(got), listed


def content(init: Init, path: bytes) -> tuple[bytes, int]:
    """A file's bytes, and the error number at its end."""
    init.send(frame(Kind.GET, path))
    got = init.until(Kind.CONTENT_END)
    return b"".join(payload for _, payload in got[:-1]), frames.decode_u32(got[-1][1])


def failed(init: Init) -> str:
    """The step that failed; init ends after it, without a sanitizer's word."""
    payload = init.expect(Kind.FAILED)
    init.leave(1)
    return payload[4:].decode()


def test_files_arguments_environment_input_and_output(init: Init) -> None:
    script = 'cat main.txt deep/er/file; cat; echo "$1|$2|$A$B" >&2; pwd; exit 7'
    ended, out, err, _ = ran(
        init,
        *frames.staged("main.txt", b"main\n"),
        *frames.staged("deep/er/file", b"x" * 3_000_000),
        frame(Kind.STDIN, b"in"),
        frame(Kind.STDIN, b"put\n"),
        shell(script, "a b", ""),
    )
    assert out == b"main\n" + b"x" * 3_000_000 + b"input\n/work\n"
    assert err == b"a b||12\n"
    assert os.waitstatus_to_exitcode(ended.wait_status) == 7
    assert ended.wall_us > 0
    assert ended.maxrss_kb > 0
    init.leave()


def test_a_file_is_truncated_when_it_is_staged_again_and_may_be_empty(init: Init) -> None:
    staged = [*frames.staged("a", b"long"), *frames.staged("a", b"x"), *frames.staged("b", b"")]
    _, out, _, _ = ran(init, *staged, shell("cat a b; ls"))
    assert out == b"xa\nb\noutputs\n"
    init.leave()


@pytest.mark.parametrize(
    "path",
    [b"", b"/etc/x", b"..", b"../x", b"a/../b", b"./a", b"a//b", b"a/", b"a\0b", b"n" * 256,
     b"a/" * 2100 + b"b"],
    ids=repr,
)  # fmt: skip
def test_a_path_that_leads_anywhere_else_is_refused(init: Init, path: bytes) -> None:
    init.send(frame(Kind.FILE, path))
    assert failed(init) == "stage"


@pytest.mark.parametrize("path", [b"file/below", b"dir", b"dir/"])
def test_a_path_over_what_is_there_is_refused(init: Init, path: bytes) -> None:
    init.send(*frames.staged("file", b""), *frames.staged("dir/x", b""), frame(Kind.FILE, path))
    assert failed(init) == "stage"


@pytest.mark.parametrize(
    ("said", "step"),
    [
        (frame(Kind.DATA, b"x"), "stage data"),
        (frame(Kind.GET, b"x"), "frame out of order"),
        (frame(Kind.READY), "frame out of order"),
        (b"\0\0\0\0\0", "frame out of order"),
        (frame(Kind.PROGRAM, b""), "program frame"),
        (frame(Kind.PROGRAM, b"\0\1" + b"\xff\xff\xff\xff" * 2), "program frame"),
        (frame(Kind.PROGRAM, b"\0\1" + b"\1\0\0\0" + b"\xff\xff\xff\xff"), "program frame"),
        (shell("exit")[:0] + frame(Kind.PROGRAM, shell("exit")[5:] + b"x"), "program frame"),
        (frames.program(warm=False, listing=True, argv=[], env=[]), "no program"),
        (frames.program(warm=True, listing=True, argv=[], env=[]), "no warm interpreter"),
        (frames.program(warm=False, listing=True, argv=["/no/such"], env=[]), "exec"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_frame_out_of_place_or_shape_names_its_step(init: Init, said: bytes, step: str) -> None:
    init.send(said)
    assert failed(init) == step


@pytest.mark.parametrize("said", [b"", b"F", b"F\5\0\0\0ab", b"D\xff\xff\xff\xff", b"D\1\0\x40\0"])
def test_an_end_in_the_middle_or_a_length_too_great_ends_it(init: Init, said: bytes) -> None:
    init.send(said)
    init.sock.shutdown(socket.SHUT_WR)
    with pytest.raises(EOFError):
        init.next()
    init.leave()


def test_no_staging_once_a_program_has_run(init: Init) -> None:
    ran(init, shell("true"))
    init.send(frame(Kind.FILE, b"late"))
    assert failed(init) == "frame out of order"


@pytest.mark.parametrize("said", [shell("true"), frame(Kind.GET, b"x"), frame(Kind.STDIN, b"x")])
def test_one_thing_at_a_time(init: Init, said: bytes) -> None:
    init.send(shell("sleep 30"))
    init.expect(Kind.BEGAN)
    init.send(said)
    assert failed(init) == "frame out of order"


def test_two_programs_share_their_files_and_their_input(init: Init) -> None:
    said = [frame(Kind.STDIN, b"in"), shell("cat > made")]
    assert ran(init, *said)[0].wait_status == 0
    assert ran(init, shell("cat made -"))[1] == b"inin"
    init.leave()


def test_a_large_input_that_is_not_read_holds_nothing_up(init: Init) -> None:
    said = frames.chunks(Kind.STDIN, b"x" * 10_000_000)
    assert ran(init, *said, shell("exec 0<&-; sleep 0.1; echo done"))[1] == b"done\n"
    init.leave()


def test_a_large_input_that_is_read_slowly_arrives(init: Init) -> None:
    said = frames.chunks(Kind.STDIN, b"x" * 10_000_000)
    assert ran(init, *said, shell("sleep 0.1; head -c 1000000 | wc -c; wc -c"))[1] == (
        b"1000000\n9000000\n"
    )
    init.leave()


def test_whoever_holds_the_pipes_at_the_end_is_killed_and_its_words_are_kept(init: Init) -> None:
    script = (
        "(setsid sh -c 'echo child; sleep 60' &) ; (trap '' TERM INT; sleep 60) & sleep 0.2; exit 3"
    )
    ended, out, _, _ = ran(init, shell(script))
    assert os.waitstatus_to_exitcode(ended.wait_status) == 3
    assert out == b"child\n"
    assert ran(init, shell("ls /proc | grep -c '^[0-9]'"))[1].strip() in {b"3", b"4", b"5"}
    init.leave()


def test_kill_ends_all_and_tells_the_signal(init: Init) -> None:
    init.send(shell("echo out; (sleep 60)& sleep 60"))
    init.expect(Kind.BEGAN)
    init.expect(Kind.STDOUT)
    init.send(frame(Kind.KILL))
    got = init.until(Kind.LISTED)
    (ended,) = [frames.decode_ended(payload) for kind, payload in got if kind is Kind.ENDED]
    assert os.WTERMSIG(ended.wait_status) == signal.SIGKILL
    init.send(frame(Kind.KILL))  # nothing runs: nothing to end
    assert ran(init, shell("echo next"))[1] == b"next\n"
    init.leave()


def test_a_program_that_signals_everybody_leaves_init_alone(init: Init) -> None:
    ended, _, _, _ = ran(
        init, shell("trap '' TERM; kill -TERM -1; kill -STOP 1; kill -KILL 1; exit 5")
    )
    assert os.waitstatus_to_exitcode(ended.wait_status) == 5
    init.leave()


def test_without_a_listing_nothing_comes_after_the_end(init: Init) -> None:
    init.send(shell("echo x > outputs/x", listing=False))
    assert init.until(Kind.ENDED)[-1][0] is Kind.ENDED
    assert content(init, b"x") == (b"x\n", 0)
    init.leave()


# ── collecting ──


def test_everything_under_outputs_is_listed_as_what_it_is(init: Init) -> None:
    script = """cd outputs; printf abc > file; ln file name; ln -s /etc/passwd link; mkfifo pipe
        mkdir -p deep/er; : > deep/er/x; mkdir empty; mkdir shut; : > shut/in; chmod 0 shut"""
    listed = {entry.path: entry for entry in ran(init, shell(script))[3]}
    assert {path: (e.kind, e.links, e.size) for path, e in listed.items()} == {
        b"file": ("f", 2, 3),
        b"name": ("f", 2, 3),
        b"link": ("l", 1, 11),
        b"pipe": ("p", 1, 0),
        b"deep/er/x": ("f", 1, 0),
        b"shut/in": ("f", 1, 0),
    }
    init.leave()


@pytest.mark.parametrize(
    ("make", "path"),
    [
        ("ln -s /etc/passwd outputs/x", b"x"),
        ("ln -s .. outputs/up; : > secret", b"up/secret"),
        ("mkfifo outputs/x", b"x"),
        (": > outputs/a; ln outputs/a outputs/x", b"x"),
        ("mkdir outputs/x", b"x"),
        (": > secret", b"../secret"),
        (":", b"/etc/hostname"),
        (":", b"absent"),
        ("rm -r outputs; ln -s / outputs", b"etc/passwd"),
        ("rm -r outputs", b"x"),
        ("rm -r outputs; : > outputs", b"x"),
    ],
)
def test_only_a_plain_file_below_outputs_is_ever_read(init: Init, make: str, path: bytes) -> None:
    ran(init, shell(make))
    got, error = content(init, path)
    assert got == b""
    assert error != 0
    init.leave()


@pytest.mark.parametrize("path", [b"", b"a\0b", b"x" * 4096])
def test_a_name_that_is_none_is_refused(init: Init, path: bytes) -> None:
    ran(init, shell("true"))
    init.send(frame(Kind.GET, path))
    assert failed(init) == "get"


def test_a_large_file_comes_whole_in_pieces(init: Init) -> None:
    ran(init, shell("head -c 1000000 /dev/zero > outputs/x"))
    assert content(init, b"x") == (bytes(1_000_000), 0)
    assert content(init, b"x") == (bytes(1_000_000), 0)
    init.leave()


def test_the_walk_is_bounded(init: Init) -> None:
    """In the number of things, in depth, and in the length of a path."""
    script = """cd outputs; n=0; while [ $n -lt 1100 ]; do : > f$n; n=$((n+1)); done"""
    init.send(shell(script))
    got = init.until(Kind.LISTED)
    assert sum(kind is Kind.ENTRY for kind, _ in got) == 1000
    assert got[-1] == (Kind.LISTED, b"\1")
    for name, times in (("d", 40), ("n" * 250, 6)):
        deep = f"for i in $(seq {times}); do mkdir {name}; cd {name}; done; : > x"
        init.send(shell(f"rm -r outputs; mkdir outputs; cd outputs; {deep}"))
        got = init.until(Kind.LISTED)
        assert got[-1] == (Kind.LISTED, b"\1")
    init.leave()


# ── an interpreter started ahead ──

WAITING = "printf r >&3; cat <&3 | tr '\\0' '|'; echo; cat main.txt"


def warm(*args: str) -> bytes:
    return frames.program(warm=True, listing=True, argv=args, env=["A=1"])


def test_a_waiting_interpreter_gets_its_job_on_its_socket(drive_init: Path, tmp_path: Path) -> None:
    init = Init(drive_init, tmp_path, "exec", "/bin/sh", "-c", WAITING)
    init.expect(Kind.READY)
    many = [f"{n}" for n in range(1234)]
    _, out, err, _ = ran(init, *frames.staged("main.txt", b"program"), warm(*many))
    assert out.decode() == "1234|" + "|".join(many) + "|A=1|\nprogram"
    assert err == b""
    init.leave()


def test_one_that_is_not_wanted_goes_unheard(drive_init: Path, tmp_path: Path) -> None:
    unheard = "printf r >&3; echo unheard; (echo child; sleep 60)& cat <&3; echo unheard"
    init = Init(drive_init, tmp_path, "exec", "/bin/sh", "-c", unheard)
    init.expect(Kind.READY)
    # What it printed while it waited may have come already: only a started program is heard.
    got = ran_after_noise(init, shell("echo cold; ls -l /proc/self/fd | grep -c socket"))
    assert got == b"cold\n0\n"
    init.leave()


def ran_after_noise(init: Init, said: bytes) -> bytes:
    init.send(said)
    init.until(Kind.BEGAN)
    return streams(init.until(Kind.LISTED))[0]


@pytest.mark.parametrize(
    ("script", "step"),
    [
        ("exit 3", "warm interpreter did not start"),
        ("printf r >&3; exit 3", "warm interpreter died"),
    ],
)
def test_one_that_dies_is_told(drive_init: Path, tmp_path: Path, script: str, step: str) -> None:
    init = Init(drive_init, tmp_path, "exec", "/bin/sh", "-c", script)
    *_, (_, payload) = init.until(Kind.FAILED)
    assert payload[4:].decode() == step
    init.leave(1)


def test_one_that_is_not_there_is_told(drive_init: Path, tmp_path: Path) -> None:
    init = Init(drive_init, tmp_path, "exec", "/no/such/interpreter")
    assert failed(init) == "exec"


# ── a program that a zygote forked: the test is the zygote ──


class Zygote:
    """The far ends that init hands over with HELLO."""

    def __init__(self, init: Init) -> None:
        data, fds, _, _ = socket.recv_fds(init.sock, 5, 8)
        assert data == frame(Kind.HELLO)
        self.stdin, self.stdout, self.stderr, self.go, self.ending = fds
        self.fds = fds

    def ends(self, status: int) -> None:
        os.write(self.ending, struct.pack("<iIQQQ", status, 0, 1, 2, 3))

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


@pytest.fixture
def zygote(drive_init: Path, tmp_path: Path) -> Iterator[tuple[Init, Zygote]]:
    init = Init(drive_init, tmp_path, "zygote")
    zygote = Zygote(init)
    os.write(zygote.go, b"\0")
    init.expect(Kind.READY)
    yield init, zygote
    zygote.close()
    init.kill()


def test_a_forked_program_s_end_comes_from_the_zygote(zygote: tuple[Init, Zygote]) -> None:
    init, program = zygote
    init.send(frame(Kind.STDIN, b"input"), warm("a"))
    init.expect(Kind.BEGAN)
    assert os.read(program.go, 100) == b"1\0a\0A=1\0"
    assert os.read(program.stdin, 100) == b"input"
    os.write(program.stdout, b"out")
    assert init.expect(Kind.STDOUT) == b"out"
    os.write(program.stderr, b"last words")
    program.ends(9 << 8)
    got = init.until(Kind.LISTED)
    assert streams(got) == (b"", b"last words")
    (ended,) = [frames.decode_ended(payload) for kind, payload in got if kind is Kind.ENDED]
    assert (ended.wait_status, ended.user_us, ended.system_us, ended.maxrss_kb) == (9 << 8, 1, 2, 3)
    init.leave()


@pytest.mark.parametrize("half", [b"", b"\0\0\0\0"])
def test_a_zygote_that_dies_is_told(zygote: tuple[Init, Zygote], half: bytes) -> None:
    init, program = zygote
    init.send(warm())
    init.expect(Kind.BEGAN)
    os.write(program.ending, half)
    os.close(program.ending)
    program.fds.remove(program.ending)
    assert failed(init) == "zygote died"


def test_a_host_that_gives_up_meanwhile_ends_init(drive_init: Path, tmp_path: Path) -> None:
    init = Init(drive_init, tmp_path, "zygote")
    program = Zygote(init)  # its ends stay open: only the channel is closed
    init.leave()
    program.close()


# ── fuzzing ──


def conversations() -> dict[str, bytes]:
    """The host's side of conversations that go well, and of some that nearly do."""
    run = shell("x", "y")
    kill, stdin = frame(Kind.KILL), frame(Kind.STDIN, b"in")
    files = b"".join(
        b"".join(frames.staged(path, b"bytes"))
        for path in ("main.py", "outputs/a", "outputs/d/e/f")
    )
    get = frame(Kind.GET, b"outputs/a") + frame(Kind.GET, b"d/e/f") + frame(Kind.GET, b"a")
    deep = "/".join(["outputs", *"abcdefghijklmnopqrstuvwxyz" * 2])
    long = "/".join(["outputs", *["n" * 250] * 5])
    hostile = [
        b"/etc/passwd",
        b"../up",
        b"a/../b",
        b"a//b",
        b"a/.",
        b"n" * 256,
        b"a\0b",
        b"a/b/",
        b"n/" * 2048,
    ]
    return {
        "plain": files + stdin + run + kill + get,
        "twice": files + run + kill + run + kill + get,
        "deep": b"".join(frames.staged(deep, b"x")) + run + kill,
        "long": b"".join(frames.staged(long, b"x")) + run + kill,
        "get": files + run + kill + frame(Kind.GET, b"d") + frame(Kind.GET, b"../main.py"),
        "strings": frames.program(warm=False, listing=False, argv=["a", ""] * 20, env=["A=b"] * 20),
        **{f"path{n}": frame(Kind.FILE, path) + run for n, path in enumerate(hostile)},
    }


def write_seeds(directory: Path) -> list[Path]:
    directory.mkdir()
    for name, said in conversations().items():
        (directory / name).write_bytes(said)
    return sorted(directory.iterdir())


def fuzzer(target: Path, *more: str | Path, compiler: str) -> Path:
    replaced = ("-Dkill=fuzz_kill", "-Dwritev=fuzz_writev")
    real = sources("proto", "job", "stage", "collect")
    return compiled(
        target, *replaced, C / "fuzz_frames.c", C / "place.c", *more, *real, compiler=compiler
    )


def fuzz(tmp_path: Path, *command: str | Path, keep: int = -1) -> None:
    place = tmp_path / "place"
    place.mkdir()
    done = subprocess.run(
        command,
        env={**OPTIONS, "FUZZ_PLACE": str(place)},
        pass_fds=() if keep < 0 else (keep,),
        capture_output=True,
        timeout=FUZZ_SECONDS + 60,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-4000:]


def test_the_frame_handlers_survive_changed_conversations(tmp_path: Path) -> None:
    seeds = write_seeds(tmp_path / "seeds")
    target = fuzzer(tmp_path / "fuzz", C / "standalone.c", compiler="cc")
    fuzz(tmp_path, target, "1", str(FUZZ_TURNS), str(FUZZ_SECONDS), *seeds)


@pytest.mark.skipif(shutil.which("clang") is None, reason="libFuzzer comes with clang")
def test_the_frame_handlers_survive_what_libfuzzer_finds(tmp_path: Path) -> None:
    """It reads the seeds, and writes an input that breaks something, through a descriptor."""
    (first, *_) = write_seeds(tmp_path / "seeds")
    target = fuzzer(tmp_path / "fuzz", "-fsanitize=fuzzer", compiler="clang")
    directory = os.open(first.parent, os.O_RDONLY)
    corpus = f"/proc/self/fd/{directory}"
    options = {
        "max_total_time": FUZZ_SECONDS,
        "max_len": 8192,
        "timeout": 10,
        "rss_limit_mb": 1024,
        "detect_leaks": 0,
        "seed": 1,
        "artifact_prefix": f"{corpus}/",
    }
    try:
        switches = [f"-{name}={value}" for name, value in options.items()]
        fuzz(tmp_path, target, *switches, corpus, keep=directory)
    finally:
        os.close(directory)
