import json

import pytest
from starlette.exceptions import HTTPException

from code_executor import errors
from code_executor.api.errors import STATUS, TYPES, error_answer, json_answer, status_of
from code_executor.errors import (
    HostUnfit,
    LimitTooHigh,
    NotFound,
    QueueFull,
    RateLimited,
    ServiceError,
    Unauthenticated,
)

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, ServiceError)
]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_has_a_status_and_a_type(kind: type[ServiceError]) -> None:
    status = next(STATUS[base] for base in kind.__mro__ if base in STATUS)
    assert status in TYPES
    assert kind is ServiceError or status != 500, "an error of its own deserves a status"


def test_a_class_without_a_row_has_its_base_s() -> None:
    assert status_of(LimitTooHigh("m")) == 400
    assert status_of(HostUnfit("m", fix="f")) == 503


def test_no_status_is_422() -> None:
    assert 422 not in {*STATUS.values(), *TYPES}
    assert error_answer(HTTPException(422), "r").status_code == 400


def test_the_body_has_the_contract_s_shape() -> None:
    answer = error_answer(NotFound("No such run.", param="id"), "req_1")
    assert json.loads(bytes(answer.body)) == {
        "error": {
            "type": "not_found_error",
            "code": "not_found",
            "message": "No such run.",
            "param": "id",
            "request_id": "req_1",
        }
    }


def test_a_refusal_says_how_to_come_back() -> None:
    assert error_answer(Unauthenticated("m"), "r").headers["www-authenticate"] == "Bearer"
    full = error_answer(QueueFull("m", retry_after_s=0.2), "r")
    assert full.headers["retry-after"] == "1"
    assert "retry-after" not in error_answer(RateLimited("m", retry_after_s=1), "r").headers


def test_the_unforeseen_is_not_repeated() -> None:
    answer = error_answer(RuntimeError("secret"), "r")
    assert answer.status_code == 500
    assert b"secret" not in bytes(answer.body)


def test_json_is_readable_text_and_always_utf8() -> None:
    assert bytes(json_answer({"a": "é", "b": "\ud800"}).body) == '{"a":"é","b":"?"}'.encode()
