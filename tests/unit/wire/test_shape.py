from typing import Any

import pytest

from code_executor.errors import InvalidRequest
from code_executor.wire.shape import RunBody, read_shape

BODY = {"language": "python", "code": "print(1)"}


def refusal(**changes: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        read_shape({**BODY, **changes})
    return caught.value


def test_what_is_absent_is_not_set() -> None:
    shape = read_shape(BODY)
    assert shape.model_fields_set == {"language", "code"}
    assert not shape.limits.model_fields_set


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"language": None}, "language"),
        ({"language": 1}, "language"),
        ({"code": ["x"]}, "code"),
        ({"code": None}, "code"),
        ({"args": "x"}, "args"),
        ({"args": ["a", 1]}, "args[1]"),
        ({"args": None}, "args"),
        ({"stdin": 1}, "stdin"),
        ({"env": []}, "env"),
        ({"env": {"A": 1}}, "env.A"),
        ({"files": {}}, "files"),
        ({"files": ["x"]}, "files[0]"),
        ({"files": [{"content": ""}]}, "files[0].path"),
        ({"files": [{"path": "a", "content": "", "encoding": "hex"}]}, "files[0].encoding"),
        ({"sources": [{"path": "a"}]}, "sources[0].content"),
        ({"limits": []}, "limits"),
        ({"limits": {"timeout_ms": "5000"}}, "limits.timeout_ms"),
        ({"limits": {"timeout_ms": 5000.0}}, "limits.timeout_ms"),
        ({"limits": {"timeout_ms": True}}, "limits.timeout_ms"),
        ({"limits": {"timeout_ms": None}}, "limits.timeout_ms"),
        ({"limits": {"timeout_ms": 0}}, "limits.timeout_ms"),
        ({"limits": {"memory_mb": -1}}, "limits.memory_mb"),
        ({"background": "true"}, "background"),
        ({"background": 1}, "background"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"comand": 1}, "comand"),
        ({"limits": {"timeout": 1}}, "limits.timeout"),
        ({"files": [{"path": "a", "contents": ""}]}, "files[0].contents"),
    ],
)
def test_a_wrong_shape_is_refused_at_its_place(changes: dict[str, Any], param: str) -> None:
    error = refusal(**changes)
    assert error.param == param
    assert error.message.startswith(param)
    assert error.code == "invalid_request"


def test_what_is_required_is_named() -> None:
    with pytest.raises(InvalidRequest, match=r"^code is required") as caught:
        read_shape({"language": "python"})
    assert caught.value.param == "code"


def test_an_unknown_field_suggests_the_known_one() -> None:
    assert "Did you mean code?" in refusal(cod="x").message
    assert "Did you mean timeout_ms?" in refusal(limits={"timeout_s": 1}).message


def test_an_unknown_field_like_no_other_lists_those_that_are_known() -> None:
    assert "Known here: language, code, args," in refusal(x=1).message
    source = {"path": "a", "content": "", "x": 1}
    assert refusal(sources=[source]).message.endswith("Known here: path, content.")


@pytest.mark.parametrize("body", [[], 1, "x", None, True])
def test_the_body_must_be_an_object(body: object) -> None:
    with pytest.raises(InvalidRequest, match="must be a JSON object"):
        read_shape(body)


def test_every_field_is_described() -> None:
    assert all(field.description for field in RunBody.model_fields.values())
