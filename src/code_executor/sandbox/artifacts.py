"""Which of the things under ``/work/outputs`` become artifacts. Pure: names are data, never paths.

A regular file with one name, a name in UTF-8 that another system can show, a size within the
limit; sorted by name, so that which ones fit the count does not depend on chance.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from code_executor.model import Limits, Skipped
from code_executor.sandbox.frames import Entry

REASONS = {
    "l": "a symbolic link",
    "p": "a named pipe",
    "s": "a socket",
    "d": "a device",
}
SKIPPED_MAX = 100
# They make a name look like another: an order of writing that is turned round, a line's end.
DECEPTIVE = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029")


@dataclass(frozen=True, slots=True)
class Choice:
    """The files to fetch (path as init knows it, name as shown, size), and what is left out."""

    fetch: tuple[tuple[bytes, str, int], ...]
    skipped: tuple[Skipped, ...]


def choose(entries: Iterable[Entry], limits: Limits, *, truncated: bool = False) -> Choice:
    """Sort what init listed into files to fetch and things skipped, with the reason."""
    fetch: list[tuple[bytes, str, int]] = []
    skipped: list[Skipped] = []
    for entry in sorted(entries, key=lambda e: e.path):
        name = entry.path.decode("utf-8", "replace")
        reason = _reason(entry, limits)
        if reason is None and len(fetch) == limits.max_artifact_files:
            reason = f"more than max_artifact_files ({limits.max_artifact_files})"
        if reason is None:
            fetch.append((entry.path, name, entry.size))
        else:
            size = entry.size if entry.kind == "f" else None
            skipped.append(Skipped(printable(name), reason, size))
    if truncated or len(skipped) > SKIPPED_MAX:
        del skipped[SKIPPED_MAX:]
        skipped.append(Skipped("", "there are more things under outputs than are listed"))
    return Choice(tuple(fetch), tuple(skipped))


def _reason(entry: Entry, limits: Limits) -> str | None:
    """Why an entry is not an artifact; ``None`` when it is one."""
    if entry.kind != "f":
        return REASONS[entry.kind]
    if entry.links != 1:
        return "a file with more than one name (hard link)"
    try:
        name = entry.path.decode("utf-8")
    except UnicodeDecodeError:
        return "a name that is not UTF-8"
    if name != printable(name):
        return "a name with control characters"
    if "\\" in name:
        return "a name with a backslash"  # a path to a client on Windows
    if entry.size > limits.max_artifact_bytes:
        return f"larger than max_artifact_bytes ({limits.max_artifact_bytes})"
    return None


def printable(name: str) -> str:
    """``name`` with control characters, deceptive ones and lone surrogates replaced."""
    return "".join("\N{REPLACEMENT CHARACTER}" if _bad(c) else c for c in name)


def _bad(character: str) -> bool:
    return character in DECEPTIVE or unicodedata.category(character) in {"Cc", "Cs"}
