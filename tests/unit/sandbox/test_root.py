"""The root of the sandboxes: only what is listed, and nothing that a host keeps to itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pytest

from code_executor.sandbox import root
from code_executor.sandbox.root import Bind, Directory, Link, Operation, Text, root_operations

PRIVATE = ("/home", "/root", "/var", "/boot", "/srv", "/mnt", "/media", "/sys", "/run", "/tmp")


@pytest.fixture(scope="module")
def operations() -> Sequence[Operation]:
    return root_operations({}, {})


def of_kind(operations: Sequence[Operation], kind: type[Operation]) -> dict[str, Operation]:
    return {operation.path: operation for operation in operations if isinstance(operation, kind)}


def below(path: str, top: str) -> bool:
    return PurePosixPath(path).is_relative_to(top)


def test_only_the_system_and_devices_are_bound(operations: Sequence[Operation]) -> None:
    sources = {operation.source for operation in operations if isinstance(operation, Bind)}
    devices = {f"/dev/{name}" for name in root.DEVICES}
    system = {"/usr", *(f"/{name}" for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"))}
    assert sources - devices <= system
    assert not any(below(source, top) for source in sources for top in PRIVATE)


def test_nothing_private_has_a_place_or_a_content(operations: Sequence[Operation]) -> None:
    for operation in operations:
        assert not PurePosixPath(operation.path).is_absolute()
        assert ".." not in PurePosixPath(operation.path).parts
        assert not any(below(f"/{operation.path}", top) for top in PRIVATE[:2])
    assert {o.path for o in operations if below(o.path, "var")} <= {"var", "var/tmp"}


def test_the_accounts_are_the_sandbox_s_own(operations: Sequence[Operation]) -> None:
    texts = {o.path: o.content for o in operations if isinstance(o, Text)}
    assert set(texts["etc/passwd"].decode().split("\n")[1].split(":")) >= {"sandbox", "1000"}
    assert len(texts["etc/passwd"].splitlines()) == 3
    assert "etc/shadow" not in texts
    assert texts["etc/resolv.conf"] == b""


def test_devices_are_the_harmless_ones(operations: Sequence[Operation]) -> None:
    bound = {o.path for o in operations if isinstance(o, Bind) and o.device}
    assert bound == {f"dev/{name}" for name in ("null", "zero", "full", "random", "urandom")}


def test_each_thing_has_its_parent_before_it_and_no_two_have_one_place(
    operations: Sequence[Operation],
) -> None:
    seen = {""}
    taken: set[str] = set()
    for operation in operations:
        if not isinstance(operation, Bind):
            assert operation.path not in taken or isinstance(operation, Directory), operation
            taken.add(operation.path)
        else:
            assert operation.path in seen, f"{operation.path} is bound on nothing"
        seen |= {str(parent) for parent in PurePosixPath(operation.path).parents}
        seen.add(operation.path)


def test_runtimes_are_bound_and_bootstraps_are_copied(tmp_path: Path) -> None:
    (tmp_path / "boot.js").write_text("wait()")
    operations = root_operations(
        {"opt/python": tmp_path}, {"opt/ahead/boot.js": tmp_path / "boot.js"}
    )
    assert Bind("opt/python", str(tmp_path)) in operations
    assert Text("opt/ahead/boot.js", b"wait()") in operations
    directories = of_kind(operations, Directory)
    assert {"opt/python", "opt/ahead"} <= directories.keys()


# ── what is copied of /etc ──


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """A directory that everybody may read, as ``/etc`` is."""
    made = tmp_path / "etc"
    made.mkdir(mode=0o755)
    return made


def copied(source: Path) -> dict[str, Operation]:
    return {operation.path: operation for operation in root._copies(source, "etc/x")}


def test_a_tree_is_copied_by_content_and_links_stay_links(etc: Path) -> None:
    (etc / "deep").mkdir()
    (etc / "deep" / "file").write_text("text")
    (etc / "link").symlink_to("/root/.ssh/id_rsa")
    assert copied(etc) == {
        "etc/x": Directory("etc/x"),
        "etc/x/deep": Directory("etc/x/deep"),
        "etc/x/deep/file": Text("etc/x/deep/file", b"text"),
        "etc/x/link": Link("etc/x/link", "/root/.ssh/id_rsa"),
    }


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o000])
def test_a_file_that_not_every_user_may_read_is_left_out(etc: Path, mode: int) -> None:
    (etc / "secret").write_text("password")
    (etc / "secret").chmod(mode)
    assert "etc/x/secret" not in copied(etc)


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o744, 0o711])
def test_a_directory_that_not_every_user_may_read_hides_what_is_in_it(etc: Path, mode: int) -> None:
    hidden = etc / "private"
    hidden.mkdir()
    (hidden / "readable").write_text("password")
    hidden.chmod(mode)
    assert not [path for path in copied(etc) if path.endswith("readable")]


def test_what_is_not_a_file_or_is_large_is_left_out(etc: Path) -> None:
    os.mkfifo(etc / "pipe")
    (etc / "large").write_bytes(bytes(root.COPY_MAX_BYTES + 1))
    (etc / "largest").write_bytes(bytes(root.COPY_MAX_BYTES))
    assert copied(etc).keys() == {"etc/x", "etc/x/largest"}
