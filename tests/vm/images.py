"""The disks of the virtual machine, built once and kept.

Theory of operation
-------------------
Three images hold what changes seldom, each in a directory named by the hash of everything
that went into it, this file included, so that an unchanged list costs nothing and a changed
one rebuilds:

``base-HASH/``
    ``disk.ext4`` (a Debian tree by mmdebstrap) with its ``vmlinuz`` and ``initrd`` beside it.
``python-HASH/``
    ``disk.ext4``, mounted at ``/opt``: a virtual environment for the service with the
    packages the tests import, and one for the programs that users send.
``engine-HASH/``
    ``disk.ext4``, a Docker engine's data with the runner images of this checkout, built outside by
    an engine of the tests' (``tests/engine/rig.py``); only made for a run that asks for it.

The last, ``project.tar``, holds the checkout, is written anew each time, and reaches the
guest as a bare block device: tar needs no file system around it.

A directory is built under a temporary name and renamed when complete, so an interrupted
build leaves nothing that looks finished. Building the images of the base and the engine needs root.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.engine.rig import BASE, LANGUAGES, Engine, dockerd, running_engine

SUITE = "bookworm"
PYTHON = "3.11"  # the python3 of SUITE
WHEELS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")

# mmdebstrap mounts the host's /dev, /proc and /sys in the tree. In namespaces of its own that
# die with us, an interrupted build leaves no process, and no mount for a clean-up to walk into.
_CONTAINED = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child"),
)
# What installing the project would put in bin/.
_PROGRAM = """#!/opt/venv/bin/python
import sys
from code_executor.cli import main
sys.exit(main())
"""
# What the runner images are made of.
_RUNNERS = (
    "runners",
    "src/code_executor/languages/go_ahead",
    "src/code_executor/sandbox/init",
    "src/code_executor/sandbox/bootstrap",
)
_RUNNER_FILES = (
    "src/code_executor/sandbox/build.py",
    "src/code_executor/languages/goahead.py",
    "src/code_executor/languages/goindex.py",
    "src/code_executor/languages/go_build.sh",
    "tests/engine/rig.py",
)
# Large, and of no use to any test.
_LEFT_OUT = (
    *("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*"),
    *("/usr/share/go-*/test/*", "/usr/bin/*-lto-dump-*"),
)


@dataclass(frozen=True, slots=True)
class Images:
    """Files the virtual machine boots from, all absolute paths; ``engine`` where one is wanted."""

    kernel: Path
    initrd: Path
    base: Path
    python: Path
    engine: Path | None


def prepare(root: Path, cache: Path, *, engine: bool) -> Images:
    """Build or find the images for the checkout ``root`` under ``cache``.

    ``engine``: that of the Docker engine as well.

    Packages come from mmdebstrap's default mirror of ``SUITE`` with its security updates.

    Raises ``subprocess.CalledProcessError`` when a tool of the build fails and
    ``SystemExit`` when an image has to be built that needs root, without root.
    """
    languages = root / "src/code_executor/languages"
    recipe = sorted((root / "tests/vm/base").iterdir())
    ahead = sorted((languages / "go_ahead").iterdir())
    go = [languages / "goindex.py", languages / "goahead.py", languages / "go_build.sh", *ahead]
    locks = [root / "requirements-dev.lock", root / "runners/python/requirements.lock"]
    base = _cached(
        cache,
        "base",
        [part.read_text() for part in (*recipe, *go)],
        lambda place: _build_base(place, root / "tests/vm/base"),
    )
    python = _cached(
        cache,
        "python",
        [lock.read_text() for lock in locks],
        lambda place: _build_python(place, *locks),
    )
    return Images(
        base / "vmlinuz",
        base / "initrd",
        base / "disk.ext4",
        python / "disk.ext4",
        _engine(root, cache) if engine else None,
    )


def _engine(root: Path, cache: Path) -> Path:
    parts = (part for name in _RUNNERS for part in sorted((root / name).rglob("*")))
    sources = [part for part in parts if part.is_file() and "_build" not in part.parts]
    sources += [root / name for name in _RUNNER_FILES]
    texts = [part.read_text() for part in sources]
    return _cached(cache, "engine", texts, lambda place: _build_engine(place, root)) / "disk.ext4"


def pack_project(root: Path, job: dict[str, object], target: Path) -> None:
    """Write the checkout's files, tracked or new but not ignored, and ``job`` as one tar."""
    listing = subprocess.run(
        ["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
    )
    with tarfile.open(target, "w") as archive:
        for name in sorted(set(os.fsdecode(listing.stdout).split("\0"))):
            if name and (root / name).is_file():
                archive.add(root / name, f"project/{name}", recursive=False)
        _add_bytes(archive, "job.json", json.dumps(job).encode())


def _add_bytes(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _lines(path: Path) -> list[str]:
    """The lines of ``path`` that are neither blank nor comment."""
    stripped = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in stripped if line]


def _cached(cache: Path, kind: str, inputs: Sequence[str], build: Callable[[Path], None]) -> Path:
    """The directory of ``kind`` made from ``inputs``; builds it and drops older ones."""
    builder = Path(__file__).read_text()
    digest = hashlib.sha256("\0".join([builder, *inputs]).encode()).hexdigest()[:12]
    place = cache / f"{kind}-{digest}"
    if place.is_dir():
        return place
    for old in cache.glob(f"{kind}-*"):
        shutil.rmtree(old)
    print(f"vm: building the {kind} image, once", flush=True)
    partial = cache / f"{kind}-{digest}.partial"
    partial.mkdir(parents=True)
    build(partial)
    return partial.rename(place)


def _need_root(kind: str) -> None:
    if os.geteuid() != 0:
        raise SystemExit(f"vm: building the {kind} image needs root, once: sudo make test-vm")


def _build_base(place: Path, recipe: Path) -> None:
    _need_root("base")
    tree = place / "tree"
    excludes = [f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT]
    _run(
        *_CONTAINED,
        "mmdebstrap",
        "--variant=minbase",
        f"--include={','.join(_lines(recipe / 'packages.txt'))}",
        *excludes,
        f"--essential-hook={recipe / 'initrd-hook.sh'}",
        f"--customize-hook={recipe / 'finish-hook.sh'}",
        *(SUITE, str(tree)),
    )
    shutil.copy(tree / "vmlinuz", place / "vmlinuz")
    shutil.copy(tree / "initrd.img", place / "initrd")
    _pack_ext4(tree, place / "disk.ext4")


def _build_engine(place: Path, root: Path) -> None:
    _need_root("engine")
    if not (root / ".runtime/python").is_dir():
        raise SystemExit("vm: the engine's image holds Python's packages: make setup")
    names = [BASE, *(f"code-executor/{language}" for language in LANGUAGES)]
    with (
        running_engine() as source,
        tempfile.TemporaryDirectory() as scratch,
        dockerd(place / "data", Path(scratch)) as target,
    ):
        _copy_images(source, target, names)
    _pack_ext4(place / "data", place / "disk.ext4")


def _copy_images(source: Engine, target: Engine, names: Sequence[str]) -> None:
    save = ["docker", "--host", source.address, "save", *names]
    with subprocess.Popen(save, stdout=subprocess.PIPE) as saving:
        assert saving.stdout is not None
        target.docker("load", stdin=saving.stdout.fileno())
    assert saving.returncode == 0


def _build_python(place: Path, service: Path, programs: Path) -> None:
    tree = place / "tree"
    site = _environment(tree / "venv", service, "/opt/venv")
    (site / "code_executor.pth").write_text("/srv/code-executor/src\n")
    program = tree / "venv/bin/code-executor"
    program.write_text(_PROGRAM)
    program.chmod(0o755)
    _environment(tree / "runtime", programs, "/opt/python")
    _pack_ext4(tree, place / "disk.ext4")


def _environment(place: Path, lock: Path, seen_as: str) -> Path:
    """Make a virtual environment with what ``lock`` names; return its site-packages.

    Written out by hand because the host's Python may be of another version than the guest's;
    the compiled files, which say ``seen_as``, are of use only where it is the same.
    """
    site = place / f"lib/python{PYTHON}/site-packages"
    site.mkdir(parents=True)
    (place / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    (place / "bin").mkdir()
    for name in ("python", "python3", f"python{PYTHON}"):
        (place / "bin" / name).symlink_to("/usr/bin/python3")
    platforms = [f"--platform={tag}" for tag in WHEELS]
    _run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"),
        *(f"--python-version={PYTHON}", "--only-binary=:all:", *platforms),
        *(f"--target={site}", f"--requirement={lock}"),
    )
    _run(
        *(sys.executable, "-m", "compileall", "-qq"), *("-s", str(place), "-p", seen_as), str(site)
    )
    return site


def _pack_ext4(tree: Path, image: Path) -> None:
    """Turn ``tree`` into a file system image with some room to write, and remove the tree."""
    used = int(subprocess.check_output(["du", "-sm", tree]).split()[0])
    _run(
        *("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", "-d", str(tree)),
        *(str(image), f"{used + used // 4 + 256}M"),
    )
    shutil.rmtree(tree)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
