"""Init's C, built with sanitizers and driven through its channel.

``tests/c/drive_init.c`` is init with only the namespaces of a sandbox taken away; it is spoken to
here with the service's own :mod:`~code_executor.sandbox.frames`. It runs as PID 1 of a pid
namespace, with a small root of its own: what is killed and written there is its.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.c.driver import Init, built, content, failed, ran, shell, streams, warm

from code_executor.sandbox import frames
from code_executor.sandbox.frames import Kind, frame


@pytest.fixture
def init(drive_init: Path, tmp_path: Path) -> Iterator[Init]:
    """An init without a warm interpreter."""
    made = Init(drive_init, tmp_path, "none")
    made.expect(Kind.READY)
    yield made
    made.kill()


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


@pytest.mark.parametrize(
    "said", [shell("true"), frame(Kind.GET, b"x"), frame(Kind.STDIN, b"x"), frames.built("x", 1)]
)
def test_one_thing_at_a_time(init: Init, said: bytes) -> None:
    init.send(shell("sleep 30"))
    init.expect(Kind.BEGAN)
    init.send(said)
    assert failed(init) == "frame out of order"


def test_an_executable_is_staged_as_one(init: Init) -> None:
    script = frames.staged("bin/tool", b"#!/bin/sh\necho ran", executable=True)
    assert (
        ran(init, *script, *frames.staged("plain", b""), shell("bin/tool; stat -c %a plain"))[1]
        == b"ran\n644\n"
    )


def test_what_a_step_built_is_told_before_the_next_one(init: Init) -> None:
    ran(init, shell("mkdir .bin; head -c 200000 /dev/zero > .bin/main"))
    assert built(init, ".bin/main", 200_000) == (bytes(200_000), 0)
    assert built(init, ".bin/main", 199_999) == (b"", errno.EFBIG)
    ran(init, shell("true"))
    init.leave()


@pytest.mark.parametrize("make", ["ln -s ../etc/passwd x", "ln main.txt x", "mkfifo x", "mkdir x"])
def test_only_a_plain_file_counts_as_built(init: Init, make: str) -> None:
    ran(init, *frames.staged("main.txt", b"x"), shell(make))
    got, error = built(init, "x", 1000)
    assert (got, error != 0) == (b"", True)
    init.leave()


@pytest.mark.parametrize("payload", [b"", b"\0\0\0\0", frames.built("", 1)[5:], b"\0" * 4 + b"x"])
def test_a_misshapen_question_for_what_was_built_ends_it(init: Init, payload: bytes) -> None:
    ran(init, shell("true"))
    init.send(frame(Kind.BUILT, payload))
    assert failed(init) == "built"


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


def test_a_waiting_interpreter_gets_its_job_on_its_socket(drive_init: Path, tmp_path: Path) -> None:
    init = Init(drive_init, tmp_path, "exec", "/bin/sh", "-c", WAITING)
    init.expect(Kind.READY)
    many = [f"{n}" for n in range(1234)]
    init.send(*frames.staged("main.txt", b"program"), warm(*many))
    out, err = streams(init.until(Kind.LISTED))
    rest = "1234|" + "|".join(many) + "|A=1|"
    assert out.decode() == f"{len(rest)}|{rest}\nprogram"
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
