"""Places in a request body and a client's own words, made safe to repeat in a message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_SHOWN_CHARS = 64


def place_of(loc: Iterable[int | str]) -> str:
    """``("files", 0, "path")`` → ``files[0].path``."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part != "[key]":  # pydantic's mark for "the key itself"
            text += f".{shown(part)}" if text else shown(part)
    return text


def shown(text: str) -> str:
    """A client's text, safe to repeat in a message: short, printable, without surrogates."""
    cut = text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in cut)


def suggestion(name: str, known: Iterable[str]) -> str:
    """`` Did you mean X?`` for the nearest of the ``known`` names; empty when none is near."""
    near = difflib.get_close_matches(name[:_SHOWN_CHARS], list(known), n=1)
    return f" Did you mean {near[0]}?" if near else ""
