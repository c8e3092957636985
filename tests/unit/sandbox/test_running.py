"""Limits that cannot be set, and when a control group counts as empty."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from code_executor.errors import SandboxUnavailable
from code_executor.model import Plan, RunStatus
from code_executor.sandbox.conformance.bench import plan
from code_executor.sandbox.group import Group, Mounts
from code_executor.sandbox.running import RunsPlans, until_empty
from code_executor.sandbox.session import Session
from code_executor.worker import BEFORE_START


class Plain(Group):
    """A group in which nothing has happened."""

    def __init__(self) -> None:
        super().__init__(Mounts(1, {"pids": Path("/none")}), {"pids": Path("/none/one")})

    def cpu_us(self) -> int:
        return 0

    def oom_kills(self) -> int:
        return 0

    def peak_bytes(self) -> int:
        return 0


class Unlimited(RunsPlans):
    """A sandbox whose limits cannot be set."""

    name = "one"
    _counters = Plain()

    def __init__(self, failure: Exception) -> None:
        super().__init__()
        self._failure = failure
        near, self.far = socket.socketpair()
        self._session = Session(near)

    def _limit_group(self, _plan: Plan) -> None:
        raise self._failure

    async def _destroy(self) -> None:
        assert self._session is not None
        self._session.close()
        self.far.close()

    def _kill(self) -> None: ...


async def test_a_program_whose_limits_cannot_be_set_has_not_begun() -> None:
    sandbox = Unlimited(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
    with pytest.raises(SandboxUnavailable) as caught:
        await sandbox.run(plan("python", ""))
    assert caught.value.step in BEFORE_START
    await sandbox.destroy()


async def test_what_waits_inside_may_be_too_large_for_the_limits() -> None:
    sandbox = Unlimited(SandboxUnavailable("no", step="memory limit"))
    assert (await sandbox.run(plan("python", ""))).status is RunStatus.OOM
    await sandbox.destroy()


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
