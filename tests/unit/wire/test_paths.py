import pytest

from code_executor.errors import InvalidRequest
from code_executor.wire.paths import check_clashes, check_path

PATHS = [
    "",
    "/",
    "/etc/passwd",
    "a/",
    "a//b",
    ".",
    "./a",
    "..",
    "../a",
    "a/../b",
    "a/..",
    "a\\b",
    "..\\a",
    "a\0b",
    "a\nb",
    "a\x7f",
    "a" * 256,
    "é" * 128,
    "/".join(["abc"] * 257),
]


@pytest.mark.parametrize("path", PATHS)
def test_paths_that_mean_another_place_are_refused(path: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^files.0..path ") as caught:
        check_path(path, "files[0].path")
    assert caught.value.param == "files[0].path"


@pytest.mark.parametrize(
    "path", ["a", "a/b/c.txt", "...", ".hidden", "a b", "é", "~", "-", "a" * 255]
)
def test_plain_paths_are_taken(path: str) -> None:
    check_path(path, "x")


@pytest.mark.parametrize(
    ("paths", "blamed"),
    [
        (["a", "a"], 1),
        (["a", "a/b"], 1),
        (["a/b", "a"], 1),
        (["a/b/c", "x", "a/b"], 2),
        (["a", "b/c", "a/b/c/d"], 2),
    ],
)
def test_the_later_of_two_clashing_paths_is_blamed(paths: list[str], blamed: int) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_clashes(paths, lambda at: f"p{at}")
    assert caught.value.param == f"p{blamed}"


def test_paths_beside_each_other_do_not_clash() -> None:
    check_clashes(["a/b", "a/c", "ab", "a.b/c", "b"], str)
