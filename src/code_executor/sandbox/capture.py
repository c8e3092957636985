"""What is kept of a program's output: the first part, the last part, and the true total.

Pure. The kept bytes are at most the limit, plus one line between the two parts that says how many
bytes were left out. The tail is cut from a bounded buffer, so a flood costs no more than a whisper.
"""

from __future__ import annotations

from code_executor.model import Output

FLOOD_FACTOR = 16
FLOOD_FLOOR = 16 * 1024 * 1024


def flood_limit(max_output_bytes: int) -> int:
    """How many bytes of one stream end a run (``killed``): far beyond what would be kept."""
    return max(FLOOD_FLOOR, FLOOD_FACTOR * max_output_bytes)


class Capture:
    """Head and tail of one stream."""

    def __init__(self, limit: int) -> None:
        self._head_room = limit - limit // 2
        self._tail_room = limit // 2
        self._head: list[bytes] = []
        self._tail = bytearray()
        self.total = 0

    def feed(self, piece: bytes) -> None:
        """One more piece of the stream."""
        self.total += len(piece)
        if self._head_room > 0:
            kept = piece[: self._head_room]
            self._head.append(kept)
            self._head_room -= len(kept)
            piece = piece[len(kept) :]
        if piece:
            self._feed_tail(piece)

    def _feed_tail(self, piece: bytes) -> None:
        self._tail += piece
        # Cut seldom: at twice the room, not at each piece.
        if len(self._tail) > 2 * self._tail_room:
            del self._tail[: len(self._tail) - self._tail_room]

    def output(self) -> Output:
        """What is kept, as the run will show it."""
        head = b"".join(self._head)
        tail = bytes(self._tail[-self._tail_room :]) if self._tail_room else b""
        omitted = self.total - len(head) - len(tail)
        if omitted == 0:
            return Output(head + tail, self.total, truncated=False)
        line = b"\n[... %d bytes left out ...]\n" % omitted
        return Output(head + line + tail, self.total, truncated=True)
