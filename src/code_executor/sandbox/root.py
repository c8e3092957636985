"""The root that every sandbox sees, as a list of operations.

:func:`root_operations` looks at the host (which directories are there) and returns data. What is
not listed does not exist in a sandbox: nothing of ``/home``, ``/root``, ``/var``, the service's
data or settings. :func:`perform` carries one operation out, for :mod:`.ground` and
:mod:`.oci_bundle`; what a bind becomes is theirs to say.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HOST_NAME = "sandbox"
DEVICES = ("null", "zero", "full", "random", "urandom")
EMPTY_DIRECTORIES = ("dev/shm", "proc", "work", "tmp", "opt", "etc")
# What init mounts over files and directories of /proc that a program has no business with.
MASK_FILE = "opt/ahead/nothing"
MASK_DIRECTORY = "opt/ahead/empty"
LINKS = {
    "dev/fd": "/proc/self/fd",
    "dev/stdin": "/proc/self/fd/0",
    "dev/stdout": "/proc/self/fd/1",
    "dev/stderr": "/proc/self/fd/2",
    "etc/mtab": "/proc/self/mounts",
    "etc/localtime": "/usr/share/zoneinfo/Etc/UTC",
    "etc/os-release": "/usr/lib/os-release",
}
TEXTS = {
    "etc/passwd": "root:x:0:0:root:/:/usr/sbin/nologin\n"
    "sandbox:x:1000:1000:sandbox:/work:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\nsandbox:x:1000:\nnogroup:x:65534:\n",
    "etc/hosts": f"127.0.0.1 localhost {HOST_NAME}\n::1 localhost\n",
    "etc/hostname": f"{HOST_NAME}\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\nservices: files\n",
    "etc/resolv.conf": "",
    "etc/timezone": "Etc/UTC\n",
    MASK_FILE: "",
}
# What interpreters read of /etc: the linker's cache, the alternatives that /usr/bin points to,
# and their own settings. None of it is secret: every user of a host may read it.
COPIED = (
    "ld.so.cache",
    "alternatives",
    "php",
    "python3",
    "python3.11",
    "python3.12",
    "python3.13",
    "fonts",
    "mime.types",
    "services",
    "protocols",
    "debian_version",
)
COPY_MAX_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Directory:
    """An empty directory, mode 0755."""

    path: str


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link."""

    path: str
    target: str


@dataclass(frozen=True, slots=True)
class Text:
    """A regular file, mode 0644."""

    path: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Bind:
    """A read-only, nosuid bind of a host's directory, or of a device's node (``device``)."""

    path: str
    source: str
    device: bool = False


Operation = Directory | Link | Text | Bind


def _system() -> Iterator[Operation]:
    """``/usr`` and the names beside it, as links where the host has merged them."""
    yield Directory("usr")
    yield Bind("usr", "/usr")
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        host = Path("/", name)
        if host.is_symlink():
            yield Link(name, os.readlink(host))
        elif host.is_dir():
            yield Directory(name)
            yield Bind(name, str(host))


def _copies(source: Path, path: str) -> Iterator[Operation]:
    """A file, link or tree of ``/etc`` by content; the unreadable and the large are left out."""
    mode = source.lstat().st_mode
    if stat.S_ISLNK(mode):
        yield Link(path, os.readlink(source))
    elif stat.S_ISDIR(mode):
        if not mode & stat.S_IROTH or not mode & stat.S_IXOTH:
            return  # what the host hides from its users stays hidden
        yield Directory(path)
        for entry in sorted(source.iterdir()):
            yield from _copies(entry, f"{path}/{entry.name}")
    elif stat.S_ISREG(mode) and mode & stat.S_IROTH and source.stat().st_size <= COPY_MAX_BYTES:
        yield Text(path, source.read_bytes())


def root_operations(mounts: dict[str, Path], texts: dict[str, Path]) -> Sequence[Operation]:
    """All of the root, in order.

    ``mounts`` maps paths in the root to host directories bound there read-only (the runtimes);
    ``texts`` maps paths to host files whose content is put there (the bootstraps).
    """
    operations: list[Operation] = [*_system()]
    operations += [Directory(path) for path in ("dev", *EMPTY_DIRECTORIES, MASK_DIRECTORY)]
    operations += [Text(path, text.encode()) for path, text in TEXTS.items()]
    operations += [Link(path, target) for path, target in LINKS.items()]
    for name in COPIED:
        if os.path.lexists(f"/etc/{name}"):
            operations += _copies(Path("/etc", name), f"etc/{name}")
    for device in DEVICES:
        operations += (Text(f"dev/{device}", b""), Bind(f"dev/{device}", f"/dev/{device}", True))
    for path, source in mounts.items():
        operations += (Directory(path), Bind(path, str(source)))
    operations += [
        Directory(str(parent)) for parent in sorted({Path(path).parent for path in texts})
    ]
    operations += [Text(path, source.read_bytes()) for path, source in texts.items()]
    return operations


def perform(operation: Operation, root: Path, bind: Callable[[Bind, Path], None]) -> None:
    """Carry one out below ``root``; ``bind`` is told of a bind and of its mount point's path.

    Raises:
        OSError: what the kernel says.
    """
    target = root / operation.path
    match operation:
        case Directory():
            target.mkdir(parents=True, exist_ok=True)
        case Link():
            target.symlink_to(operation.target)
        case Text():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(operation.content)
        case Bind():
            bind(operation, target)
