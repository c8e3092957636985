"""A Docker engine of the tests' own: Debian's dockerd, without network, with its own data.

Theory of operation. No registry is needed: the base image is a Debian tree that ``debootstrap``
makes with the languages in it, imported under the name that the Dockerfiles of ``runners/`` start
from. Those find everything there and so build without a network; so does ``deploy/Dockerfile``,
whose Python packages wait in ``/var/wheels``, fetched as ``scripts/setup.sh`` fetches them. Tree
and images stay in a cache outside of the checkout (``XDG_CACHE_HOME``), locked while an engine uses
it: the first start takes minutes, later ones seconds. The engine is ended by its pid. It changes no
rule of this host's network: what it publishes on a port goes through its own proxy.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LANGUAGES = ("python", "node", "ruby", "php", "go")
BASE = "debian:bookworm-slim"
TREE = "code-executor-tests/tree"
WITH_RUNTIME = "code-executor-tests/runtime"
SUITE = "bookworm"
SUITE_PYTHON = "3.11"
PACKAGES = ("ca-certificates", "gcc", "golang-go", "libc6-dev", "nodejs", "php-cli", "python3",
            "python3-venv", "ruby")  # fmt: skip
START_TIMEOUT_S = 60.0


class NoEngine(Exception):
    """An engine cannot be started on this host; says why."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A running engine."""

    address: str

    @property
    def environment(self) -> dict[str, str]:
        """For programs that are to speak to it."""
        return _environment(self.address)

    def docker(self, *args: str, stdin: int | None = None) -> str:
        """Run the engine's own client; its standard output."""
        done = subprocess.run(
            ["docker", *args],
            env=self.environment,
            stdin=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"docker {' '.join(args)}: {done.stderr[-2000:]}"
        return done.stdout.strip()

    def containers(self) -> list[str]:
        """Every container that there is, running or not."""
        return self.docker("ps", "--all", "--quiet").split()

    @contextmanager
    def tree(self, image: str) -> Iterator[Path]:
        """The files of an image, as the engine has them mounted for a container."""
        name = self.docker("run", "--detach", "--network=none", image, "sleep", "infinity")
        try:
            found = self.docker("inspect", "--format", "{{.GraphDriver.Data.MergedDir}}", name)
            yield Path(found)
        finally:
            self.docker("rm", "--force", name)


def cache() -> Path:
    """Where the tree and the images are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "code-executor" / "engine"


@contextmanager
def running_engine() -> Iterator[Engine]:
    """An engine with every runner image of this checkout.

    ``CODE_EXECUTOR_ENGINE`` is the address of one that is there already, with the images in it.

    Raises:
        NoEngine: this host cannot have one.
    """
    if address := os.environ.get("CODE_EXECUTOR_ENGINE"):
        yield Engine(address)
        return
    _check_host()
    directory = cache()
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock, tempfile.TemporaryDirectory() as scratch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with dockerd(directory / "data", Path(scratch)) as engine:
            _remove_what_is_left(engine)
            _make_tree(engine, directory)
            _make_images(engine)
            # What earlier states of the sources have left; the younger is the builder's cache.
            engine.docker("image", "prune", "--force", "--filter", "until=72h")
            yield engine


def _remove_what_is_left(engine: Engine) -> None:
    """Of tests that were killed."""
    for kind in (("container", "ls", "--all"), ("volume", "ls")):
        for left in engine.docker(*kind, "--quiet").split():
            engine.docker(kind[0], "rm", "--force", left)
    engine.docker("network", "prune", "--force")


def _check_host() -> None:
    if os.geteuid() != 0:
        raise NoEngine("only root can start an engine")
    missing = [tool for tool in ("dockerd", "docker", "debootstrap") if shutil.which(tool) is None]
    if missing:
        raise NoEngine(f"no {', '.join(missing)}; scripts/setup.sh --tests")


def _environment(address: str) -> dict[str, str]:
    """The old builder is in the engine itself; the new one is a plugin that may not be there."""
    return {**os.environ, "DOCKER_HOST": address, "DOCKER_BUILDKIT": "0"}


@contextmanager
def dockerd(data: Path, scratch: Path) -> Iterator[Engine]:
    """An engine without network that keeps everything in ``data``; its socket is in ``scratch``.

    Raises:
        NoEngine: it does not start.
    """
    address = f"unix://{scratch}/docker.sock"
    command = ["dockerd", "--iptables=false", "--ip-forward=false", "--bridge=none"]
    command += [f"--data-root={data}"]
    command += [f"--exec-root={scratch}/exec", f"--pidfile={scratch}/pid", f"--host={address}"]
    with (scratch / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            _await(process, address, scratch / "log")
            yield Engine(address)
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
            process.wait()


def _await(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    ask = ["docker", "version", "--format", "{{.Server.Version}}"]
    while subprocess.run(ask, env=_environment(address), capture_output=True).returncode != 0:
        if process.poll() is not None or time.monotonic() > deadline:
            raise NoEngine(f"dockerd does not start: {log.read_text()[-1000:]}")
        time.sleep(0.1)


def _make_tree(engine: Engine, directory: Path) -> None:
    """The base with all languages, then this checkout's Python packages on it: the programs' ones
    in place, the service's to be installed."""
    recipe = hashlib.sha256(f"{SUITE} {','.join(PACKAGES)}".encode()).hexdigest()[:12]
    if not engine.docker("images", "--quiet", f"{TREE}:{recipe}"):
        _import_tree(engine, directory / "tree", f"{TREE}:{recipe}")
    runtime = Path(os.environ.get("RUNTIME_DIR") or ROOT / ".runtime")
    _add_runtime(engine, directory, f"{TREE}:{recipe}", runtime / "python")
    settings = r"[global]\nno-index = true\nfind-links = /var/wheels\n"
    copied = f"FROM {WITH_RUNTIME}\nCOPY . /var/wheels\nRUN printf '{settings}' >/etc/pip.conf\n"
    _make_base(engine, BASE, copied, _wheels(directory))


def _add_runtime(engine: Engine, directory: Path, tree: str, runtime: Path) -> None:
    """Not asked of the engine when it is what it was: that would be sent half a gigabyte."""
    stamp, known = runtime / ".stamp", directory / "runtime.stamp"
    wanted = f"{tree} {stamp.read_text()}" if stamp.is_file() else ""
    is_there = bool(engine.docker("images", "--quiet", WITH_RUNTIME))
    if is_there and wanted and known.is_file() and known.read_text() == wanted:
        return
    known.unlink(missing_ok=True)
    _make_base(engine, WITH_RUNTIME, f"FROM {tree}\nCOPY . /opt/python\n", runtime)
    known.write_text(wanted)


def _make_base(engine: Engine, name: str, dockerfile: str, context: Path) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".Dockerfile") as file:
        file.write(dockerfile)
        file.flush()
        engine.docker("build", "--quiet", "--tag", name, "--file", file.name, str(context))


def _wheels(directory: Path) -> Path:
    """The service's packages for the base's Python, as the lock lists them."""
    lock = ROOT / "requirements.lock"
    wheels = directory / "wheels" / hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    if not wheels.is_dir():
        fresh = wheels.with_suffix(".new")
        shutil.rmtree(wheels.parent, ignore_errors=True)
        fetch = ["download", "--quiet", "--only-binary=:all:", "--require-hashes"]
        fetch += [f"--python-version={SUITE_PYTHON}", f"--dest={fresh}", f"--requirement={lock}"]
        subprocess.run([sys.executable, "-m", "pip", *fetch], check=True, capture_output=True)
        fresh.rename(wheels)
    return wheels


def _import_tree(engine: Engine, tree: Path, name: str) -> None:
    shutil.rmtree(tree, ignore_errors=True)
    include = f"--include={','.join(PACKAGES)}"
    subprocess.run(
        ["debootstrap", "--variant=minbase", include, SUITE, str(tree)],
        check=True,
        capture_output=True,
    )
    shutil.rmtree(tree / "var/cache/apt/archives")
    pack = subprocess.Popen(["tar", "-C", str(tree), "-c", "."], stdout=subprocess.PIPE)
    assert pack.stdout is not None
    engine.docker("import", "-", name, stdin=pack.stdout.fileno())
    pack.stdout.close()
    assert pack.wait() == 0
    shutil.rmtree(tree)


def _make_images(engine: Engine) -> None:
    for language in LANGUAGES:
        file = ROOT / "runners" / language / "Dockerfile"
        tag = f"code-executor/{language}"
        engine.docker(
            "build", "--quiet", "--network=none", "--tag", tag, "--file", str(file), str(ROOT)
        )


def must_run(environment: Mapping[str, str], name: str) -> bool:
    """Whether ``CODE_EXECUTOR_MUST_RUN`` turns a skip of ``name`` into a failure."""
    return name in environment.get("CODE_EXECUTOR_MUST_RUN", "").replace(" ", "").split(",")
