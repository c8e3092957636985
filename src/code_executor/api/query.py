"""Query parameters, strictly: known names, each once, each in its range."""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet

from starlette.datastructures import QueryParams

from code_executor.errors import InvalidRequest

MAX_PAGE = 100
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def read_query(params: QueryParams, known: AbstractSet[str]) -> dict[str, str]:
    """The parameters by name.

    Raises:
        InvalidRequest: one that is not ``known``, or one given twice.
    """
    values: dict[str, str] = {}
    for name, value in params.multi_items():
        if name not in known:
            names = ", ".join(sorted(known)) or "none"
            shown = _ascii(name)
            raise InvalidRequest(
                f"{shown} is not a known query parameter; known here: {names}.", param=shown
            )
        if name in values:
            raise InvalidRequest(f"The query parameter {name} is there twice.", param=name)
        values[name] = value
    return values


def page_size(values: dict[str, str], default: int = 20) -> int:
    """``limit``: 1 to 100."""
    text = values.get("limit", str(default))
    if not re.fullmatch(r"[0-9]{1,6}", text) or not 1 <= int(text) <= MAX_PAGE:
        raise InvalidRequest(f"limit must be an integer from 1 to {MAX_PAGE}.", param="limit")
    return int(text)


def after_id(values: dict[str, str]) -> str | None:
    """``after``: the id of the last entry of the page before."""
    text = values.get("after")
    if text is not None and not _ID.fullmatch(text):
        raise InvalidRequest("after must be an id.", param="after")
    return text


def _ascii(name: str) -> str:
    return name[:64].encode("ascii", "replace").decode()
