import pytest
from starlette.datastructures import QueryParams

from code_executor.api.query import after_id, page_size, read_query
from code_executor.errors import InvalidRequest


def test_known_parameters_come_by_name() -> None:
    assert read_query(QueryParams("a=1&b="), {"a", "b", "c"}) == {"a": "1", "b": ""}


@pytest.mark.parametrize(("text", "param"), [("x=1", "x"), ("a=1&a=1", "a"), ("é=1", "?")])
def test_others_and_repetitions_are_refused(text: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_query(QueryParams(text), {"a"})
    assert caught.value.param == param
    assert caught.value.message.startswith(
        (f"{param} is not", "The query parameter a is there twice")
    )


@pytest.mark.parametrize(("text", "size"), [("1", 1), ("100", 100), ("007", 7)])
def test_a_page_has_1_to_100_entries(text: str, size: int) -> None:
    assert page_size({"limit": text}) == size
    assert page_size({}) == 20


@pytest.mark.parametrize("text", ["0", "101", "-1", "1.0", "", " 1", "1e2", "٣", "9" * 5000])
def test_any_other_size_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        page_size({"limit": text})


def test_after_is_an_id() -> None:
    assert after_id({"after": "run_aZ-9"}) == "run_aZ-9"
    assert after_id({}) is None
    for text in ("", "a b", "a/b", "a" * 65, "é"):
        with pytest.raises(InvalidRequest):
            after_id({"after": text})
