"""Whose containers are whose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from code_executor.sandbox.docker_owner import HOME_LABEL, OWNER_LABEL, Owner


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Owner]:
    with closing(Owner(tmp_path)) as owner:
        yield owner


def test_containers_of_the_dead_are_orphans(owner: Owner, tmp_path: Path) -> None:
    dead = Owner(tmp_path)
    dead.close()
    assert owner.orphans([("a", dead.labels), ("b", owner.labels)]) == ["a"]


def test_a_lock_that_nobody_holds_is_of_the_dead(owner: Owner, tmp_path: Path) -> None:
    (tmp_path / "0123.owner").touch()
    labels = {HOME_LABEL: owner.home, OWNER_LABEL: "0123"}
    assert owner.orphans([("a", labels)]) == ["a"]
    assert not (tmp_path / "0123.owner").exists()


def test_containers_of_the_living_are_not(owner: Owner, tmp_path: Path) -> None:
    with closing(Owner(tmp_path)) as other:
        assert other.home == owner.home
        assert owner.orphans([("a", other.labels)]) == []


def test_containers_of_another_home_are_nobodys_business(owner: Owner, tmp_path: Path) -> None:
    other = Owner(tmp_path / "other")
    other.close()
    assert owner.orphans([("a", other.labels), ("b", {})]) == []


def test_a_label_names_no_file_elsewhere(owner: Owner, tmp_path: Path) -> None:
    outside = tmp_path.parent / "outside.owner"
    outside.touch()
    labels = {HOME_LABEL: owner.home, OWNER_LABEL: "../outside"}
    owner.orphans([("a", labels)])
    assert outside.exists()


def test_closing_twice_is_closing_once(owner: Owner, tmp_path: Path) -> None:
    owner.close()
    owner.close()
    assert [path.name for path in tmp_path.glob("*.owner")] == []
