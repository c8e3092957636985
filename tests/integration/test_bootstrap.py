"""An interpreter that waits for its job (``sandbox/bootstrap``), outside a sandbox: the test is its
init. In one it is in ``test_native_runs.py`` and ``test_native_invisible.py``."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from code_executor.sandbox.zygote import BOOTSTRAP

PROGRAMS = {
    "node": ("main.js", "console.log(process.argv.slice(2).join('|'), process.env.X)"),
    "php": (
        "main.php",
        "<?php echo implode('|', array_slice($argv, 1)), ' ', getenv('X'), PHP_EOL;",
    ),
    "ruby": ("main.rb", " puts ARGV.join('|') + ' ' + ENV['X']"),
}
OPTIONS = {
    "node": ("-r", f"{BOOTSTRAP}/node.js"),
    "php": ("-d", f"auto_prepend_file={BOOTSTRAP}/php.php"),
    "ruby": ("-r", f"{BOOTSTRAP}/ruby.rb"),
}
every = pytest.mark.parametrize("language", list(PROGRAMS))


class Waiting:
    """An interpreter that has said that it waits."""

    def __init__(self, place: Path, language: str, *options: str) -> None:
        interpreter = shutil.which(language)
        assert interpreter is not None, f"apt-get install {language}"
        name, text = PROGRAMS[language]
        (place / name).write_text(text)
        self.go, theirs = socket.socketpair()
        self.go.settimeout(20)
        command = 'exec 3<&"$1"; shift; exec "$@"'
        given = [interpreter, *options, *OPTIONS[language], str(place / name)]
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", command, "-", str(theirs.fileno()), *given],
            pass_fds=[theirs.fileno()],
            cwd=place,
            env={"PATH": os.environ["PATH"]},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        theirs.close()
        assert self.go.recv(1) == b"\0"

    def gets(self, job: bytes) -> str:
        """What is printed when the job has come, and nothing after it."""
        with self.go:
            self.go.sendall(job)
        return self._process.communicate(timeout=20)[0].decode()


def job(*args: str) -> bytes:
    """As init's ``release`` writes it."""
    parts = (str(len(args)), *args, "X=v")
    rest = b"".join(part.encode() + b"\0" for part in parts)
    return b"%d\0" % len(rest) + rest


@every
def test_arguments_and_environment_arrive(tmp_path: Path, language: str) -> None:
    assert Waiting(tmp_path, language).gets(job("a", "", "é 2")) == "a||é 2 v\n"


@every
def test_a_job_of_many_pieces_arrives_whole(tmp_path: Path, language: str) -> None:
    assert Waiting(tmp_path, language).gets(job("x" * 400_000, "y")) == "x" * 400_000 + "|y v\n"


@every
@pytest.mark.parametrize("given", [0, 1, 4, 20])
def test_without_all_of_it_nothing_is_run(tmp_path: Path, language: str, given: int) -> None:
    assert Waiting(tmp_path, language).gets(job("a" * 3000)[:given]) == ""


def test_php_waits_longer_than_its_streams_do(tmp_path: Path) -> None:
    waiting = Waiting(tmp_path, "php", "-d", "default_socket_timeout=1")
    time.sleep(2.5)
    assert waiting.gets(job("a", "b")) == "a|b v\n"
