"""Speaks to ``drive_init`` as the service would, with the service's own frames."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

from tests.c.build import OPTIONS

from code_executor.sandbox import frames
from code_executor.sandbox.frames import Ended, Kind, frame

PATIENCE_S = 20.0


class Init:
    """A running init and the host's end of its channel; ``leave`` expects it to end well."""

    def __init__(self, program: Path, place: Path, *mode: str) -> None:
        self.sock, theirs = socket.socketpair()
        self.zygote, asked = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for ours in (self.sock, self.zygote):
            ours.settimeout(PATIENCE_S)
        self._decoder = frames.Decoder()
        self._frames: list[tuple[Kind, bytes]] = []
        command = 'exec 3<&"$1" 4<&"$2"; eval "exec $1<&- $2<&-"; shift 2; exec "$@"'
        if mode[0] == "deserted":  # as "zygote", which has died
            mode = ("zygote", *mode[1:])
            self.zygote.close()
        given = (theirs.fileno(), asked.fileno())
        self.process = subprocess.Popen(
            ["/bin/bash", "-c", command, "-", *map(str, given), program, place, *mode],
            pass_fds=given,
            env=OPTIONS,
            stderr=subprocess.PIPE,
        )
        theirs.close()
        asked.close()

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

    def close(self) -> None:
        """The host's end, and the zygote's."""
        self.sock.close()
        self.zygote.close()

    def leave(self, code: int = 0) -> None:
        self.close()
        assert self.process.wait(PATIENCE_S) == code, self.words()
        assert self.words() == ""
        assert self.process.stderr is not None
        self.process.stderr.close()

    def kill(self) -> None:
        self.close()
        self.process.kill()
        self.process.wait(PATIENCE_S)
        assert self.process.stderr is not None
        self.process.stderr.close()


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


def built(init: Init, path: str, most: int) -> tuple[bytes, int]:
    """What a step made, and the error it ended with."""
    init.send(frames.built(path, most))
    return _content(init)


def content(init: Init, path: bytes) -> tuple[bytes, int]:
    """A file's bytes, and the error number at its end."""
    init.send(frame(Kind.GET, path))
    return _content(init)


def _content(init: Init) -> tuple[bytes, int]:
    got = init.until(Kind.CONTENT_END)
    return b"".join(payload for _, payload in got[:-1]), frames.decode_u32(got[-1][1])


def failed(init: Init) -> str:
    """The step that failed; init ends after it, without a sanitizer's word."""
    payload = init.expect(Kind.FAILED)
    init.leave(1)
    return payload[4:].decode()


def warm(*args: str) -> bytes:
    """The start of an interpreter that waits."""
    return frames.program(warm=True, listing=True, argv=args, env=["A=1"])
