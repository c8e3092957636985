"""``docker run`` as a subject: an engine that answers, or one started here and stopped after.

The image holds nothing but empty directories: the container sees the host's ``/usr`` and the same
interpreters as every other subject, read-only, so nothing is downloaded and the comparison is of
the same programs.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.place import Place, Skipped
from benchmarks.subjects import MEMORY_MB, PROCESSES, Command, need

IMAGE = "code-executor-bench:latest"
START_S = 30.0
_LIMITS = (
    "--rm", "--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges",
    f"--memory={MEMORY_MB}m", f"--pids-limit={PROCESSES}", "--tmpfs=/tmp:exec",
)  # fmt: skip


@contextmanager
def engine(place: Place) -> Iterator[Command]:
    """The subject, with its image imported; removed afterwards.

    Raises:
        Skipped: no engine answers, and none can be started.
    """
    docker = [need("docker", "apt-get install docker.io")]
    with contextlib.ExitStack() as stack:
        if not _answers(docker):
            docker += ["--host", stack.enter_context(_daemon(place, docker))]
        _import_image(docker)
        try:
            yield Command("docker", place, [*docker, "run", *_LIMITS, *_options(place), IMAGE])
        finally:
            _call([*docker, "image", "rm", "--force", IMAGE])


def _answers(docker: list[str]) -> bool:
    return _call([*docker, "info"]).returncode == 0


@contextmanager
def _daemon(place: Place, docker: list[str]) -> Iterator[str]:
    """A daemon of our own, without network set-up; its address."""
    if shutil.which("dockerd") is None or os.geteuid() != 0:
        raise Skipped("no Docker engine answers, and dockerd is not here to be started by root")
    home = place.scratch / "docker"
    home.mkdir()
    address = f"unix://{home}/docker.sock"
    command = [
        "dockerd", "--iptables=false", "--ip6tables=false", "--bridge=none", "--host", address,
        "--data-root", str(home / "data"), "--exec-root", str(home / "exec"),
        "--pidfile", str(home / "pid"), "--storage-driver=overlay2",
    ]  # fmt: skip
    with (home / "log").open("w") as log, subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
    ) as process:  # fmt: skip
        try:
            _wait_until_it_answers([*docker, "--host", address], process, home / "log")
            yield address
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(START_S)
            process.kill()


def _wait_until_it_answers(docker: list[str], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not _answers(docker):
        if process.poll() is not None or time.monotonic() > deadline:
            last = log.read_text().strip().rpartition("\n")[2]
            raise Skipped(f"dockerd did not start: {last[-300:]}")
        time.sleep(0.2)


def _import_image(docker: list[str]) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in ("usr", "etc", "tmp", "proc", "dev", "sys"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for link in (path for path in _system_links() if path.is_symlink()):
            entry = tarfile.TarInfo(link.name)
            entry.type, entry.linkname = tarfile.SYMTYPE, str(link.readlink())
            tar.addfile(entry)
    done = _call([*docker, "import", "-", IMAGE], archive.getvalue())
    if done.returncode:
        raise Skipped(f"docker import: {done.stderr.decode(errors='replace').strip()[-300:]}")


def _system_links() -> list[Path]:
    return [Path("/", name) for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32")]


def _options(place: Place) -> list[str]:
    directories = [path for path in _system_links() if path.is_dir() and not path.is_symlink()]
    read_only = [Path("/usr"), Path("/etc/alternatives"), place.runtime, *directories]
    options = [f"--volume={path}:{path}:ro" for path in read_only]
    options += [f"--volume={path}:{path}" for path in (place.work, place.home)]
    options += [f"--env={name}={value}" for name, value in place.environment().items()]
    return [*options, f"--workdir={place.work}"]


def _call(command: list[str], given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, input=given, capture_output=True, timeout=60, check=False)
