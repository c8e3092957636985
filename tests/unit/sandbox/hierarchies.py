"""Directories that look like the kernel's control groups, for the tests beside this file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

FILES: dict[str, dict[str, str]] = {
    "memory": {
        "cgroup.procs": "",
        "tasks": "",
        "memory.limit_in_bytes": "",
        "memory.memsw.limit_in_bytes": "",
        "memory.max_usage_in_bytes": "4096\n",
        "memory.usage_in_bytes": "4096\n",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    },
    "pids": {
        "cgroup.procs": "",
        "tasks": "",
        "pids.max": "",
        "pids.current": "0\n",
        "pids.events": "max 3\n",
    },
    "cpuacct": {"cgroup.procs": "", "tasks": "", "cpuacct.usage": "1234567\n"},
    "unified": {
        "cgroup.procs": "",
        "pids.max": "",
        "pids.current": "0\n",
        "pids.events": "max 3\n",
        "memory.current": "4096\n",
        "memory.max": "",
        "memory.swap.max": "",
        "memory.oom.group": "",
        "memory.events": "low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 1\n",
        "memory.peak": "4096\n",
        "cpu.stat": "usage_usec 1234\nuser_usec 1000\nsystem_usec 234\n",
        "cgroup.kill": "",
        "cpu.idle": "0\n",
    },
    "cpu": {"cgroup.procs": "", "tasks": "", "cpu.idle": "0\n"},
}


def imitate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group's directory is made with its files in it, and removed with them once it is empty."""
    mkdir, rmdir = os.mkdir, os.rmdir

    def make(path: str | Path, mode: int = 0o777) -> None:
        mkdir(path, mode)
        for name, text in FILES.get(Path(path).parent.name, {}).items():
            Path(path, name).write_text(text)

    def remove(path: str | Path) -> None:
        procs = Path(path, "cgroup.procs")
        if procs.exists():
            if procs.read_text():
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            for entry in Path(path).iterdir():
                entry.unlink()
        rmdir(path)

    monkeypatch.setattr(os, "mkdir", make)
    monkeypatch.setattr(os, "rmdir", remove)
