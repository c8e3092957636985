import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from code_executor.api.files import clean_name, clean_type, disposition
from code_executor.errors import InvalidRequest


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("a.txt", "a.txt"),
        ("../../a", "a"),
        ("C:\\x\\a b", "a b"),
        ("é", "é"),
        (".hidden", ".hidden"),
    ],
)
def test_a_name_is_its_last_component(name: str, kept: str) -> None:
    assert clean_name(name) == kept


@pytest.mark.parametrize("name", ["", ".", "..", "a/", "a\0b", "a\nb", "a\u202eb", "é" * 128])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest):
        clean_name(name)


@pytest.mark.parametrize(
    ("declared", "name", "kind"),
    [
        ("text/csv", "a", "text/csv"),
        ("Text/HTML; charset=utf-8", "a", "text/html"),
        (None, "a.png", "image/png"),
        ("", "a.png", "image/png"),
        ("application/octet-stream", "a.png", "image/png"),
        ("nonsense", "a", "application/octet-stream"),
        ("text/plain\r\nX: y", "a", "application/octet-stream"),
        ("text/" + "x" * 100, "a", "application/octet-stream"),
    ],
)
def test_a_type_is_a_type(declared: str | None, name: str, kind: str) -> None:
    assert clean_type(declared, name) == kind


@given(name=st.text(min_size=1, max_size=80))
def test_no_name_breaks_out_of_the_header(name: str) -> None:
    value = disposition(name, "application/zip")
    form = r"attachment; filename=\"[ !#-$&-\[\]-~]*\"; filename\*=UTF-8''[A-Za-z0-9%._~-]*"
    assert re.fullmatch(form, value)


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("image/png", True),
        ("image/svg+xml", False),
        ("text/plain", True),
        ("text/html", False),
        ("application/pdf", True),
        ("application/xhtml+xml", False),
        ("", False),
    ],
)
def test_only_plain_types_are_shown(kind: str, shown: bool) -> None:
    assert disposition("a", kind).startswith("inline" if shown else "attachment")
