"""The control: the same plan carried out by the interpreter itself, with no sandbox at all.

A program's files are written to a fresh directory that a private mount namespace shows as
``/work`` (``bare_root.sh``), because tracebacks, ``__file__`` and the like name that path; the
interpreter is started by ``exec``, so the wait status seen here is the program's own. Go is
built by ``go build``, not by the sandbox's compile step: the reference must not share what is
to be proved.

It needs root, or unprivileged user namespaces.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from code_executor.model import Phase, Plan

HOST = Path("/")
RUNTIME = Path(__file__).parents[2] / ".runtime" / "python"
SCRIPT = Path(__file__).with_name("bare_root.sh")
NOBODY = 65_534
GO_BUILD = ("/usr/bin/sh", "-c", "exec /usr/bin/go build -o .bin/main ./*.go")
GO_ENV = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "GOCACHE": "/opt/cache",
    "GOPROXY": "off",
    "CGO_ENABLED": "0",
}


@dataclass(frozen=True, slots=True)
class End:
    """How a program ended: its streams, and an exit code or the name of a signal."""

    stdout: bytes
    stderr: bytes
    exit_code: int | None
    signal: str | None
    phase: Phase = Phase.RUN


@dataclass(frozen=True, slots=True)
class _Place:
    """The directories that a command sees, by what they become there."""

    root: Path
    tree: Path
    work: Path
    cache: Path

    def arguments(self) -> list[str]:
        """What ``bare_root.sh`` is given. Another system has its own Python runtime."""
        runtime = RUNTIME if self.tree == HOST else self.tree / "opt/python"
        return [*map(str, (self.root, self.tree, self.work, runtime, self.cache))]


def run_bare(plan: Plan, cache: Path, *, tree: Path = HOST, timeout: float = 60) -> End:
    """Carry out ``plan`` without a sandbox; ``cache`` keeps Go's build cache between calls.

    ``tree`` is the system whose interpreters are used: this host's, or the files of an image.
    """
    with tempfile.TemporaryDirectory(prefix="bare-") as scratch:
        place = _Place(Path(scratch, "root"), tree, Path(scratch, "work"), cache)
        place.root.mkdir()
        _stage(plan, place.work)
        if any(step.phase is Phase.COMPILE for step in plan.steps):
            built = _execute(place, GO_BUILD, GO_ENV, b"", timeout)
            if built.exit_code != 0:
                return End(built.stdout, built.stderr, built.exit_code, built.signal, Phase.COMPILE)
        argv = (*plan.steps[-1].argv, *plan.args)
        return _execute(place, argv, dict(plan.env), plan.stdin, timeout)


def _stage(plan: Plan, work: Path) -> None:
    for name in ("", "inputs", "outputs"):
        (work / name).mkdir()
    for file in plan.files:
        target = work / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.content)
    if os.geteuid() == 0:
        for path in (work, *work.rglob("*")):
            os.chown(path, NOBODY, NOBODY)


def _execute(
    place: _Place, argv: tuple[str, ...], env: dict[str, str], stdin: bytes, timeout: float
) -> End:
    variables = [f"{name}={value}" for name, value in env.items()]
    command = [*_prefix(), *place.arguments()]
    if os.geteuid() == 0:
        os.chown(place.cache, NOBODY, NOBODY)
        command += ["-u", str(NOBODY)]
    with tempfile.TemporaryFile() as given:
        given.write(stdin)
        given.seek(0)
        done = subprocess.run(
            [*command, "--", *variables, *argv],
            stdin=given,
            capture_output=True,
            timeout=timeout,
            start_new_session=True,
            preexec_fn=_before_exec,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )
    if str(SCRIPT).encode() in done.stderr:
        raise RuntimeError(f"the control could not be set up: {done.stderr.decode()}")
    name = signal.Signals(-done.returncode).name if done.returncode < 0 else None
    return End(done.stdout, done.stderr, None if name else done.returncode, name)


def _prefix() -> list[str]:
    unshare = shutil.which("unshare") or "unshare"
    private = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return [unshare, *private, "--mount", "--propagation", "private", "/bin/sh", str(SCRIPT)]


def _before_exec() -> None:
    """No core file in the program's directory; its streams are its own, as a shell's user's are.

    Nor does it matter what whoever started the tests has ignored (``nohup``).
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if os.geteuid() == 0:
        for stream in range(3):
            os.fchown(stream, NOBODY, NOBODY)
