"""Who runs a program: the contract, and the subjects that are commands.

All commands run the same interpreter with the same arguments and environment in the same
directory; they differ in what is put before it. None of them limits system calls or leaves the
caller's user behind as the service does: they are measured at their cheapest.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from benchmarks.place import Place, Skipped
from benchmarks.programs import Program

RUN_S = 60.0
"""No single command takes this long; one that does ends the benchmark."""
MEMORY_MB = 256
PROCESSES = 64

_SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


class Subject(Protocol):
    """A way to run programs, one at a time."""

    @property
    def name(self) -> str:
        """What it is called in the results."""
        ...

    def prepare(self, program: Program, number: int) -> Callable[[], bytes]:
        """Everything that is not to be timed; calling the result is one run, and is timed.

        Raises:
            Skipped: this machine or this subject cannot run it.
        """
        ...

    def printed(self, raw: bytes) -> bytes:
        """What the program printed, from what the run returned.

        Raises:
            Skipped: the run failed.
        """
        ...


class Command:
    """The bare interpreter, or one behind a ``prefix`` that is put before it."""

    def __init__(self, name: str, place: Place, prefix: Sequence[str] = ()) -> None:
        self._name = name
        self._place = place
        self._prefix = tuple(prefix)

    @property
    def name(self) -> str:
        return self._name

    def argv(self, program: Program) -> list[str]:
        """The whole command."""
        return [*self._prefix, *self._place.command(program)]

    def prepare(self, program: Program, number: int) -> Callable[[], bytes]:
        argv, environment = self.argv(program), self._place.environment()
        self._place.write_source(program, number)
        return lambda: run_command(argv, self._place.work, environment)

    def printed(self, raw: bytes) -> bytes:
        return raw


class Runc:
    """``runc run`` of a bundle whose root has the host's ``/usr``; a container per run."""

    name = "runc"

    def __init__(self, place: Place) -> None:
        need("runc", "apt-get install runc")
        self._place = place
        self._bundle = place.scratch / "bundle"
        self._state = place.scratch / "runc"
        (self._bundle / "rootfs").mkdir(parents=True)

    def prepare(self, program: Program, number: int) -> Callable[[], bytes]:
        config = bundle(self._place, self._place.command(program))
        (self._bundle / "config.json").write_text(json.dumps(config))
        self._place.write_source(program, number)
        argv = ["runc", "--root", str(self._state), "run", "--bundle", str(self._bundle)]
        container = f"bench-{self._place.scratch.name}-{program.name}-{number}"
        return lambda: run_command([*argv, container], self._bundle, None)

    def printed(self, raw: bytes) -> bytes:
        return raw


def run_command(argv: Sequence[str], cwd: Path, environment: Mapping[str, str] | None) -> bytes:
    """Run it to its end; what it printed.

    Raises:
        Skipped: it failed, with the last line of what it said.
    """
    done = subprocess.run(
        argv, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=RUN_S
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise Skipped(f"{Path(argv[0]).name} ended with {done.returncode}: {said[:300]}")
    return done.stdout


def need(tool: str, fix: str) -> str:
    """Where ``tool`` is.

    Raises:
        Skipped: nowhere.
    """
    found = shutil.which(tool)
    if found is None:
        raise Skipped(f"{tool} is not installed ({fix})")
    return found


def bwrap(place: Place) -> Command:
    """``bwrap --unshare-all`` with a read-only system and a private ``/tmp``.

    Raises:
        Skipped: it is not installed.
    """
    prefix = [need("bwrap", "apt-get install bubblewrap"), "--unshare-all", "--die-with-parent"]
    for source in ("/usr", "/etc"):
        prefix += ["--ro-bind", source, source]
    for name in _SYSTEM:
        host = Path("/", name)
        if host.is_symlink():
            prefix += ["--symlink", str(host.readlink()), str(host)]
        elif host.is_dir():
            prefix += ["--ro-bind", str(host), str(host)]
    prefix += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    prefix += ["--ro-bind", str(place.runtime), str(place.runtime)]
    for writable in (place.work, place.home):
        prefix += ["--bind", str(writable), str(writable)]
    return Command("bwrap", place, [*prefix, "--chdir", str(place.work)])


def bundle(place: Place, argv: Sequence[str]) -> dict[str, Any]:
    """An OCI runtime configuration: namespaces, no capabilities, memory and process limits."""
    environment = [f"{name}={value}" for name, value in place.environment().items()]
    namespaces = ("pid", "network", "ipc", "uts", "mount", "cgroup")
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": list(argv),
            "env": environment,
            "cwd": str(place.work),
            "capabilities": {},
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "mounts": [*_own_mounts(), *_host_mounts(place)],
        "linux": {
            "namespaces": [{"type": kind} for kind in namespaces],
            "resources": {
                "memory": {"limit": MEMORY_MB << 20},
                "pids": {"limit": PROCESSES},
            },
        },
    }


def _own_mounts() -> list[dict[str, Any]]:
    kept = ["nosuid", "nodev"]
    return [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": kept},
    ]


def _host_mounts(place: Place) -> list[dict[str, Any]]:
    seen = ["/usr", "/etc", *(f"/{name}" for name in _SYSTEM if Path("/", name).is_dir())]
    read_only = [*seen, str(place.runtime)]
    writable = [str(place.work), str(place.home)]
    return [
        {"destination": path, "type": "bind", "source": path, "options": options}
        for paths, options in ((read_only, ["rbind", "ro"]), (writable, ["rbind", "rw"]))
        for path in paths
    ]
