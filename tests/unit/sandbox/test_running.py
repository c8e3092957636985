"""When a control group counts as empty."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from code_executor.sandbox.group import Group, Mounts
from code_executor.sandbox.running import until_empty


class Unreadable(Group):
    """A group of which every reading fails the same way."""

    def __init__(self, number: int) -> None:
        super().__init__(Mounts(1, {"pids": Path("/none")}), {"pids": Path("/none/one")})
        self._number = number

    def empty(self) -> bool:
        raise OSError(self._number, "")

    def pids(self) -> set[int]:
        raise OSError(self._number, "")


@pytest.mark.parametrize(
    ("number", "empty"),
    [(errno.ENOENT, True), (errno.ENODEV, True), (errno.EMFILE, False), (errno.ENOMEM, False)],
)
async def test_a_group_that_cannot_be_read_is_empty_only_if_it_was_removed(
    number: int, empty: bool
) -> None:
    assert await until_empty(Unreadable(number), 0.01) is empty
