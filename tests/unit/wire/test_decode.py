import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from code_executor.errors import InvalidRequest, LimitTooHigh, PayloadTooLarge, ServiceError
from code_executor.model import DEFAULT_LIMITS, MAXIMUM_LIMITS, InputFile, RunRequest, SourceFile
from code_executor.wire import RunBody, RunRules, decode_run
from code_executor.wire.decode import MAX_ARG_BYTES, MAX_STDIN_BYTES

RULES = RunRules(
    languages={"python": "main.py", "node": "main.js"},
    aliases={"py": "python"},
    max_code_bytes=1_000,
    max_file_bytes=100,
    max_files_bytes=150,
)
BODY = {"language": "python", "code": "print(1)"}


def decode(**changes: Any) -> RunRequest:
    return decode_run(json.dumps({**BODY, **changes}).encode(), RULES)


def refusal(**changes: Any) -> ServiceError:
    with pytest.raises(InvalidRequest) as caught:
        decode(**changes)
    return caught.value


def test_the_smallest_request() -> None:
    assert decode() == RunRequest("python", "print(1)", limits=DEFAULT_LIMITS)


def test_every_field() -> None:
    request = decode(
        language="py",
        args=["-x", ""],
        stdin="in",
        env={"A": "1"},
        files=[
            {"path": "a/b.txt", "id": "file_1"},
            {
                "path": "c.bin",
                "content": base64.b64encode(b"\0\xff").decode(),
                "encoding": "base64",
            },
            {"path": "d.txt", "content": "é"},
        ],
        sources=[{"path": "lib/util.py", "content": "x = 1"}],
        limits={"timeout_ms": 9_999},
        background=False,
        stream=False,
        metadata={"k": "v"},
    )
    assert request.language == "python"
    assert request.args == ("-x", "")
    assert request.env == (("A", "1"),)
    assert request.files == (
        InputFile("a/b.txt", file_id="file_1"),
        InputFile("c.bin", content=b"\0\xff"),
        InputFile("d.txt", content="é".encode()),
    )
    assert request.sources == (SourceFile("lib/util.py", b"x = 1"),)
    assert (request.limits.timeout_ms, request.limits.cpu_ms) == (9_999, 5_000)
    assert request.metadata == (("k", "v"),)


def test_an_unknown_language_lists_the_known_and_the_nearest() -> None:
    error = refusal(language="Pyhton")
    assert (error.code, error.param) == ("unknown_language", "language")
    assert "node, python" in error.message
    assert "Did you mean python?" in error.message


def test_a_limit_above_its_maximum_names_both() -> None:
    error = refusal(limits={"timeout_ms": 60_000})
    assert isinstance(error, LimitTooHigh)
    assert error.message == "limits.timeout_ms is 60000; the maximum is 10000."
    assert error.param == "limits.timeout_ms"


@pytest.mark.parametrize("name", MAXIMUM_LIMITS.names())
def test_every_limit_reaches_its_maximum_and_no_further(name: str) -> None:
    maximum = getattr(MAXIMUM_LIMITS, name)
    assert getattr(decode(limits={name: maximum}).limits, name) == maximum
    assert isinstance(refusal(limits={name: maximum + 1}), LimitTooHigh)
    assert isinstance(refusal(limits={name: 10**400}), LimitTooHigh)


@pytest.mark.parametrize("name", ["background", "stream"])
def test_what_this_version_does_not_serve_is_said(name: str) -> None:
    error = refusal(**{name: True})
    assert (error.code, error.param) == ("not_supported", name)


@pytest.mark.parametrize(
    ("files", "sources", "param"),
    [
        (["a", "a"], [], "files[1].path"),
        (["a", "a/b"], [], "files[1].path"),
        (["a/b/c", "x", "a/b"], [], "files[2].path"),
        ([], ["main.py"], "sources[0].path"),
        ([], ["main.py/x"], "sources[0].path"),
        ([], ["x.py", "x.py"], "sources[1].path"),
        ([], ["inputs/x"], "sources[0].path"),
        ([], ["outputs"], "sources[0].path"),
    ],
)
def test_paths_do_not_clash(files: list[str], sources: list[str], param: str) -> None:
    error = refusal(
        files=[{"path": path, "content": ""} for path in files],
        sources=[{"path": path, "content": ""} for path in sources],
    )
    assert error.param == param


def test_a_file_and_a_source_may_share_a_name() -> None:
    decode(files=[{"path": "main.py", "content": ""}], sources=[{"path": "a.py", "content": ""}])


@pytest.mark.parametrize(
    ("entry", "param"),
    [
        ({"path": "a"}, "files[0]"),
        ({"path": "a", "id": "f", "content": ""}, "files[0]"),
        ({"path": "a", "id": ""}, "files[0]"),
        ({"path": "a", "id": "f", "encoding": "base64"}, "files[0]"),
        ({"path": "a", "id": "f" * 65}, "files[0].id"),
        ({"path": "a", "content": "YQ=", "encoding": "base64"}, "files[0].content"),
        ({"path": "a", "content": "Y Q==", "encoding": "base64"}, "files[0].content"),
        ({"path": "a", "content": "é", "encoding": "base64"}, "files[0].content"),
    ],
)
def test_a_file_is_an_id_or_bytes(entry: dict[str, Any], param: str) -> None:
    assert refusal(files=[entry]).param == param


def test_files_have_caps() -> None:
    decode(files=[{"path": "a", "content": "x" * 100}])
    one = refusal(files=[{"path": "a", "content": "x" * 101}])
    assert isinstance(one, PayloadTooLarge)
    assert one.param == "files[0].content"
    all_together = refusal(
        files=[{"path": "a", "content": "x" * 100}], sources=[{"path": "b", "content": "x" * 51}]
    )
    assert isinstance(all_together, PayloadTooLarge)


def test_code_is_counted_in_bytes() -> None:
    assert decode(code="é" * 500).code == "é" * 500
    error = refusal(code="é" * 501)
    assert error.param == "code"
    assert "1002 bytes; the maximum is 1000" in error.message


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"args": ["a\0b"]}, "args[0]"),
        ({"args": ["x" * (MAX_ARG_BYTES + 1)]}, "args[0]"),
        ({"args": ["x" * 131_000] * 5}, "args"),
        ({"args": [""] * 1_001}, "args"),
        ({"env": {"A": "a\0b"}}, "env.A"),
        ({"env": {"A=B": ""}}, "env.A=B"),
        ({"env": {"": ""}}, "env."),
        ({"env": {"A\0": ""}}, "env.A�"),
        ({"env": {"A" * 256: ""}}, "env." + "A" * 64 + "…"),
        ({"env": {"A": "x" * MAX_ARG_BYTES}}, "env.A"),
        ({"env": {f"A{n}": "" for n in range(257)}}, "env"),
        ({"stdin": "x" * (MAX_STDIN_BYTES + 1)}, "stdin"),
    ],
)
def test_what_the_kernel_would_not_take_is_refused(changes: dict[str, Any], param: str) -> None:
    assert refusal(**changes).param == param


def test_a_nul_in_code_and_stdin_is_the_program_s_business() -> None:
    assert decode(code="\0", stdin="\0").stdin == "\0"


@pytest.mark.parametrize(
    ("metadata", "param"),
    [
        ({"": ""}, "metadata."),
        ({"k" * 65: ""}, "metadata." + "k" * 64 + "…"),
        ({"k": "v" * 513}, "metadata.k"),
    ],
)
def test_metadata_is_bounded(metadata: dict[str, str], param: str) -> None:
    assert refusal(metadata=metadata).param == param


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(list(RunBody.model_fields)) | st.text(max_size=5), JSON))
def test_any_json_is_a_request_or_a_refusal(body: dict[str, Any]) -> None:
    try:
        decode_run(json.dumps({**BODY, **body}).encode(), RULES)
    except InvalidRequest as error:
        error.message.encode()


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_a_refusal(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        decode_run(body, RULES)
