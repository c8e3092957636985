"""The control channel between the host and a sandbox's init, message by message.

One byte stream of frames: a type (1 byte), a payload length (4 bytes, little-endian), the payload.
Integers are little-endian; a *string* is a 4-byte length and bytes without NUL; *strings* is a
4-byte count and that many strings. ``init/proto.h`` has the same letters.

Host to init (payload at most 4 MiB):

====  ===========  =====================================================================
 F    FILE         path relative to ``/work``: the file that DATA is for, created empty
 A    EXECUTABLE   the same, for a file that may be executed
 D    DATA         bytes appended to it
 I    STDIN        bytes appended to what the program will read
 P    PROGRAM      u8 warm (1: the waiting interpreter, 0: exec), u8 list (1: send the
                   listing after it), strings argv (warm: the arguments only), strings env
 K    KILL         end what runs; no payload
 G    GET          path relative to ``/work/outputs``
 T    BUILT        u32 most bytes, string path relative to ``/work``: what a compile step made
====  ===========  =====================================================================

Init to host (payload at most 64 KiB):

====  ===========  =====================================================================
 R    READY        prepared: set up, and a started-ahead interpreter waits
 B    BEGAN        the program runs; not sent for a waiting interpreter
 O E  STDOUT/ERR   a piece of the program's output
 X    ENDED        i32 wait status, u64 user µs, u64 system µs, u64 max RSS KiB, u64 wall µs
 L    ENTRY        u8 kind (f file, l link, p fifo, s socket, d device), u32 links,
                   u64 size, path
 Z    LISTED       u8 truncated
 C    CONTENT      a piece of the file asked for
 c    CONTENT_END  u32 errno, 0 when it is complete
 !    FAILED       u32 errno, name of the step; init ends after it
====  ===========  =====================================================================

Order: READY; FILE, EXECUTABLE, DATA, STDIN before the first PROGRAM only; then per program
(BEGAN), output, ENDED and, if asked for, ENTRY … LISTED; GET and BUILT when nothing runs. Both ends
treat the other as hostile: a length, type or order that does not fit ends this sandbox and this
run, nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

HEADER = struct.Struct("<BI")
ENDED = struct.Struct("<iQQQQ")
ENTRY = struct.Struct("<BIQ")
U32 = struct.Struct("<I")

PAYLOAD_IN_MAX = 4 * 1024 * 1024
PAYLOAD_OUT_MAX = 64 * 1024
CHUNK = 1024 * 1024


class ProtocolError(Exception):
    """The other end broke the rules above; its sandbox is not to be trusted further."""


class Kind(IntEnum):
    """Frame types; the values are the letters of the table."""

    FILE = ord("F")
    EXECUTABLE = ord("A")
    DATA = ord("D")
    STDIN = ord("I")
    PROGRAM = ord("P")
    KILL = ord("K")
    GET = ord("G")
    BUILT = ord("T")
    READY = ord("R")
    BEGAN = ord("B")
    STDOUT = ord("O")
    STDERR = ord("E")
    ENDED = ord("X")
    ENTRY = ord("L")
    LISTED = ord("Z")
    CONTENT = ord("C")
    CONTENT_END = ord("c")
    FAILED = ord("!")


FROM_HOST = frozenset(
    {
        Kind.FILE,
        Kind.EXECUTABLE,
        Kind.DATA,
        Kind.STDIN,
        Kind.PROGRAM,
        Kind.KILL,
        Kind.GET,
        Kind.BUILT,
    }
)
FROM_INIT = frozenset(Kind) - FROM_HOST
_BY_LETTER = {int(kind): kind for kind in FROM_INIT}


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program's main process ended; times in microseconds, memory in KiB."""

    wait_status: int
    user_us: int
    system_us: int
    maxrss_kb: int
    wall_us: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing under ``/work/outputs`` that is not a directory; ``path`` is raw bytes."""

    kind: str
    links: int
    size: int
    path: bytes


def frame(kind: Kind, payload: bytes = b"") -> bytes:
    """One frame whole."""
    return HEADER.pack(kind, len(payload)) + payload


def string(value: bytes) -> bytes:
    """A counted string."""
    return U32.pack(len(value)) + value


def strings(values: Sequence[bytes]) -> bytes:
    """A counted list of counted strings."""
    return U32.pack(len(values)) + b"".join([U32.pack(len(each)) + each for each in values])


def staged(path: str, content: bytes, *, executable: bool = False) -> Iterator[bytes]:
    """The frames that put ``content`` at ``path``."""
    yield frame(Kind.EXECUTABLE if executable else Kind.FILE, path.encode())
    yield from chunks(Kind.DATA, content)


def chunks(kind: Kind, content: bytes) -> Iterator[bytes]:
    """``content`` in frames of one kind, none of them over the limit."""
    for start in range(0, len(content), CHUNK):
        yield frame(kind, content[start : start + CHUNK])


def program(*, warm: bool, listing: bool, argv: Sequence[str], env: Sequence[str]) -> bytes:
    """The frame that starts a program; ``env`` holds ``NAME=VALUE``."""
    payload = bytes((warm, listing)) + strings([a.encode() for a in argv])
    payload += strings([e.encode() for e in env])
    if len(payload) > PAYLOAD_IN_MAX:
        raise ProtocolError("arguments and environment are too large")
    return frame(Kind.PROGRAM, payload)


def built(path: str, most: int) -> bytes:
    """The frame that asks for what a compile step made, unless it is larger than ``most``."""
    return frame(Kind.BUILT, U32.pack(most) + string(path.encode()))


def decode_ended(payload: bytes) -> Ended:
    """The payload of ENDED."""
    if len(payload) != ENDED.size:
        raise ProtocolError("ENDED has the wrong size")
    return Ended(*ENDED.unpack(payload))


def decode_entry(payload: bytes) -> Entry:
    """The payload of ENTRY."""
    if not ENTRY.size < len(payload) <= ENTRY.size + 1024:
        raise ProtocolError("ENTRY has the wrong size")
    kind, links, size = ENTRY.unpack_from(payload)
    if kind not in b"flpsd":
        raise ProtocolError("ENTRY has an unknown kind")
    return Entry(chr(kind), links, size, payload[ENTRY.size :])


def decode_u32(payload: bytes) -> int:
    """A payload that starts with one u32."""
    if len(payload) < U32.size:
        raise ProtocolError("payload is too short")
    value: int = U32.unpack_from(payload)[0]
    return value


class Decoder:
    """Cuts init's byte stream into frames, whatever pieces it arrives in."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[tuple[Kind, bytes]]:
        """The frames that ``data`` completes.

        Raises:
            ProtocolError: an unknown type, a type only the host may send, or too long a payload.
        """
        if self._rest:
            data = self._rest + data
        at = 0
        try:
            while len(data) - at >= HEADER.size:
                kind, size = _header(data, at)
                start = at + HEADER.size
                if len(data) < start + size:
                    break
                at = start + size
                yield kind, data[start:at]
        finally:
            self._rest = data[at:]


def _header(data: bytes, at: int) -> tuple[Kind, int]:
    letter, size = HEADER.unpack_from(data, at)
    kind = _BY_LETTER.get(letter)
    if kind is None:
        raise ProtocolError(f"init sent a frame of type {letter}")
    if size > PAYLOAD_OUT_MAX:
        raise ProtocolError(f"init sent a frame of {size} bytes")
    return kind, size
