"""What the host sees of a native backend: its processes, its control groups, its descriptors."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from code_executor.sandbox.native import NativeBackend
from code_executor.sandbox.zygote import Zygote

ZYGOTE_FLAVOURS = ("python", "python-std", "python-data")


@dataclass(frozen=True)
class Process:
    """A process of this host."""

    pid: int
    parent: int
    command: bytes
    began: int
    """When it was started, in ticks since the host's start: numbers of processes wrap around."""

    @property
    def first_inside(self) -> bool:
        """Whether it is PID 1 of a pid namespace."""
        return len(self._numbers("NSpid")) > 1 and self._numbers("NSpid")[-1] == 1

    @property
    def uid(self) -> int:
        """Its user id as the host knows it."""
        return self._numbers("Uid")[0]

    def _numbers(self, field: str) -> list[int]:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return [int(number) for number in value.split()]
        return []

    async def end(self, number: int = signal.SIGKILL) -> None:
        """Signal it and wait until it is gone; for SIGSTOP, until it stands."""
        os.kill(self.pid, number)
        states = "ZX" if number != signal.SIGSTOP else "T"
        await until(lambda: self._state() in states)

    def _state(self) -> str:
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2][0]
        except (FileNotFoundError, ProcessLookupError):
            return "X"


def processes() -> Iterator[Process]:
    """Every process but the dead ones that nobody has waited for."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = (entry / "stat").read_text().rpartition(") ")[2].split()
            state, parent, began = fields[0], int(fields[1]), int(fields[19])
            if state not in "ZX":
                yield Process(int(entry.name), parent, (entry / "cmdline").read_bytes(), began)


def children(pid: int) -> list[Process]:
    """In the order in which they were started."""
    return sorted((p for p in processes() if p.parent == pid), key=lambda p: (p.began, p.pid))


def launcher() -> Process:
    """The launcher that this process has started last."""
    return _launchers()[-1]


def _launchers() -> list[Process]:
    return [child for child in children(os.getpid()) if child.command == b"launcher\0"]


async def another_launcher(before: Process) -> None:
    """Until one has taken the place of one that has died, or will have to."""
    await until(lambda: any(each.began > before.began for each in _launchers()))


def zygotes() -> list[Process]:
    """The launcher's warm interpreters."""
    return _of_launcher(first_inside=False)


def inits() -> list[Process]:
    """PID 1 of each sandbox that there is."""
    return _of_launcher(first_inside=True)


def _of_launcher(*, first_inside: bool) -> list[Process]:
    found = []
    for child in children(launcher().pid):
        with suppress(FileNotFoundError, ProcessLookupError):  # gone since it was listed
            if child.first_inside is first_inside:
                found.append(child)
    return found


async def hangs(*_: object) -> Zygote:
    """In the place of ``Zygote.start``: one that never becomes warm."""
    await asyncio.Event().wait()
    raise AssertionError


async def give_up_starting(backend: NativeBackend) -> None:
    """End the one start of a zygote that is under way."""
    (starting,) = backend._starting
    starting.cancel()
    await asyncio.wait({starting})


async def zygotes_back(backend: NativeBackend) -> None:
    """Have each zygote that is missing started now, whatever it was to wait for; until all are."""
    backend._again = dict.fromkeys(backend._again, 0.0)
    for flavour in ZYGOTE_FLAVOURS:  # each notices its own
        await (await backend.prepare(flavour)).destroy()
    await until(lambda: len(zygotes()) == len(ZYGOTE_FLAVOURS) and not backend._starting)


def descriptors(backend: NativeBackend) -> int:
    """How many this process has open, without those of groups that wait to serve again."""
    return len(os.listdir("/proc/self/fd")) - sum(len(group._fds) for group in backend._groups)


def groups(backend: NativeBackend) -> set[str]:
    """The control groups of sandboxes that there are; not those that wait to serve again."""
    tree = backend._tree
    assert tree is not None
    return tree.names() - {Path(group.path).name for group in backend._groups}


async def until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until something holds; it is a failure when it never does."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        await asyncio.sleep(0.005)


async def nothing_left(backend: NativeBackend) -> None:
    """Expect that no sandbox has left a process, a control group or a claim on user ids."""
    await until(lambda: not inits())
    assert groups(backend) == set()
    assert backend.live == 0
