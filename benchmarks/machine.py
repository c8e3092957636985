"""What the numbers were taken on. No host name, no path, no address."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.place import Place
from benchmarks.results import Machine

_VERSION = re.compile(r"[0-9]+(?:\.[0-9]+)+")


def describe(place: Place) -> Machine:
    """This machine, now: ask before anything has been started."""
    return Machine(
        cpu=_field("/proc/cpuinfo", r"model name\s*:\s*(.+)") or platform.machine(),
        cores=os.cpu_count() or 1,
        memory_mb=int(_field("/proc/meminfo", r"MemTotal:\s*(\d+)") or 0) // 1024,
        kernel=platform.release(),
        system=_field("/etc/os-release", r'PRETTY_NAME="?([^"\n]+)') or platform.system(),
        virtualised=re.search(r"\bhypervisor\b", Path("/proc/cpuinfo").read_text()) is not None,
        load_at_start=round(os.getloadavg()[0], 2),
        versions=_versions(place),
        measured_at=datetime.now(UTC).strftime("%Y-%m-%d"),
    )


def _versions(place: Place) -> dict[str, str]:
    commands = {
        "Python": [str(place.python / "bin" / "python3"), "--version"],
        "Node.js": ["node", "--version"],
        "Ruby": ["ruby", "--version"],
        "PHP": ["php", "--version"],
        "Go": ["go", "version"],
        "bubblewrap": ["bwrap", "--version"],
        "runc": ["runc", "--version"],
        "docker": ["docker", "--version"],
    }
    found = {name: _version(command) for name, command in commands.items()}
    return {"code-executor": version("code-executor"), **{n: v for n, v in found.items() if v}}


def _version(command: Sequence[str]) -> str | None:
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except OSError:
        return None
    match = _VERSION.search(said.stdout)
    return match[0] if match else None


def _field(file: str, pattern: str) -> str | None:
    try:
        match = re.search(pattern, Path(file).read_text())
    except OSError:
        return None
    return match[1].strip() if match else None
