"""Paths of staged files: relative, plain, and not in each other's way."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from code_executor.errors import InvalidRequest

MAX_SEGMENT_BYTES = 255
MAX_PATH_BYTES = 1_024

CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def check_path(path: str, place: str) -> None:
    """Accept a relative path of plain segments; nothing that means another place.

    Raises:
        InvalidRequest: absolute, empty, ``.`` or ``..`` segments, a backslash, a control
            character, a segment over 255 bytes, over 1024 bytes in all.
    """
    segments = path.split("/")
    if "\\" in path or CONTROL.search(path):
        why = "must not hold a backslash or a control character"
    elif any(segment in ("", ".", "..") for segment in segments):
        why = "must be relative, without empty, '.' or '..' segments"
    elif len(path.encode()) > MAX_PATH_BYTES:
        why = f"is too long; the maximum is {MAX_PATH_BYTES} bytes"
    elif any(len(segment.encode()) > MAX_SEGMENT_BYTES for segment in segments):
        why = f"has a segment over {MAX_SEGMENT_BYTES} bytes"
    else:
        return
    raise InvalidRequest(f"{place} {why}.", param=place)


def check_clashes(paths: Sequence[str], place: Callable[[int], str]) -> None:
    """No path twice, and none where another needs a directory; ``place`` names the nth path.

    Raises:
        InvalidRequest: blames the later of the two.
    """
    first: dict[str, int] = {}
    for at, path in enumerate(paths):
        if path in first:
            raise InvalidRequest(f"{place(at)} is taken already.", param=place(at))
        first[path] = at
    for at, path in enumerate(paths):
        segments = path.split("/")
        for depth in range(1, len(segments)):
            parent = first.get("/".join(segments[:depth]))
            if parent is not None:
                blamed = place(max(at, parent))
                raise InvalidRequest(
                    f"{blamed} is a file where another path needs a directory.", param=blamed
                )
