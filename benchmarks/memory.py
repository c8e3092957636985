"""Memory of the service and of its waiting sandboxes, read from ``/proc``.

A sandbox is recognised by its pid namespace, which is not the service's; its flavour by the
interpreter that waits in it. Private memory is what only its processes have (``Private_*`` of
``smaps_rollup``), PSS adds its part of what is shared with others. A sandbox's page tables,
mounts and the like are in neither; they are in what its control group has been charged, which
in turn does not have pages that were touched before the process joined the group.
"""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.place import Skipped
from benchmarks.results import ServiceMemory, WarmSandbox
from benchmarks.stats import median

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_INTERPRETERS = ("python3", "node", "ruby", "php")
_DATA_STACK = "/numpy/"


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    namespace: str
    command: str
    private_kb: int
    pss_kb: int


def of_service(pid: int, when: str) -> ServiceMemory:
    """All of the service whose main process is ``pid``.

    Raises:
        Skipped: this user may not read it.
    """
    found = _processes(pid)
    pss = sum(process.pss_kb for process in found)
    return ServiceMemory(when, len(found), _mb(pss))


def of_sandboxes(pid: int) -> list[WarmSandbox]:
    """The sandboxes that wait in that service, by flavour.

    Raises:
        Skipped: as :func:`of_service`.
    """
    own = os.readlink(_PROC / str(pid) / "ns" / "pid")
    places: dict[str, list[_Process]] = defaultdict(list)
    for process in _processes(pid):
        if process.namespace != own:
            places[process.namespace].append(process)
    flavours: dict[str, list[Sequence[_Process]]] = defaultdict(list)
    for processes in places.values():
        flavours[_flavour(processes)].append(processes)
    return [_row(flavour, flavours[flavour]) for flavour in sorted(flavours)]


def _row(flavour: str, sandboxes: Sequence[Sequence[_Process]]) -> WarmSandbox:
    charged = [_charged(processes[0].pid) for processes in sandboxes]
    known = [kb for kb in charged if kb is not None]
    return WarmSandbox(
        flavour=flavour,
        count=len(sandboxes),
        private_mb=_mb(median([sum(p.private_kb for p in each) for each in sandboxes])),
        pss_mb=_mb(median([sum(p.pss_kb for p in each) for each in sandboxes])),
        charged_mb=_mb(median(known)) if known else None,
    )


def _flavour(processes: Sequence[_Process]) -> str:
    inside = next((p for p in processes if p.command in _INTERPRETERS), None)
    if inside is None:
        return "no interpreter (Go)"
    if inside.command != "python3":
        return inside.command
    maps = (_PROC / str(inside.pid) / "maps").read_text()
    return "python-data" if _DATA_STACK in maps else "python"


def _processes(root: int) -> list[_Process]:
    children = defaultdict(list)
    for pid, parent in _parents():
        children[parent].append(pid)
    todo, found = [root], []
    while todo:
        pid = todo.pop()
        todo += children[pid]
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.append(_process(pid))
    return found


def _parents() -> Iterator[tuple[int, int]]:
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                yield int(entry.name), int(stat[1])


def _process(pid: int) -> _Process:
    place = _PROC / str(pid)
    try:
        sizes = _sizes(place / "smaps_rollup")
        return _Process(
            pid=pid,
            namespace=os.readlink(place / "ns" / "pid"),
            command=(place / "comm").read_text().strip(),
            private_kb=sizes["Private_Clean"] + sizes["Private_Dirty"],
            pss_kb=sizes["Pss"],
        )
    except PermissionError:
        raise Skipped("this user may not read the memory of the sandboxes") from None


def _sizes(rollup: Path) -> Mapping[str, int]:
    rows = (line.split() for line in rollup.read_text().splitlines()[1:])
    return {row[0].rstrip(":"): int(row[1]) for row in rows}


def _charged(pid: int) -> float | None:
    """What the process's control group holds, in KiB; v1 and v2."""
    for line in (_PROC / str(pid) / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            usage = _CGROUPS / "memory" / path.lstrip("/") / "memory.usage_in_bytes"
        elif not controllers:
            usage = _CGROUPS / path.lstrip("/") / "memory.current"
        else:
            continue
        with contextlib.suppress(OSError):
            return int(usage.read_text()) / 1024
    return None


def _mb(kib: float) -> float:
    return round(kib / 1024, 2)
