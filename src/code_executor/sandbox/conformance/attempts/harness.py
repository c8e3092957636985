"""How an attempt is written, found and reported."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

Body = Callable[[], None]

REFUSALS = frozenset({errno.EPERM, errno.EACCES, errno.ENOSYS})
"""What the kernel answers when a call is not allowed, rather than wrong."""


class Reached(Exception):
    """The attempt got through; the message says to what."""


@dataclass(frozen=True)
class Attempt:
    """One thing that must not work; ``promise`` is its id in SECURITY.md."""

    name: str
    title: str
    promise: str
    quick: bool
    body: Body


ATTEMPTS: dict[str, Attempt] = {}


def attempt(promise: str, *, quick: bool = False) -> Callable[[Body], Body]:
    """Register a function; its docstring's first line says what is tried."""

    def register(body: Body) -> Body:
        title = (body.__doc__ or "").partition("\n")[0].rstrip(".")
        ATTEMPTS[body.__name__] = Attempt(body.__name__, title, promise, quick, body)
        return body

    return register


@contextmanager
def refused(what: str, *allowed: int) -> Iterator[None]:
    """Expect an ``OSError`` inside, one of ``allowed`` error numbers when any are given."""
    try:
        yield
    except OSError as exc:
        if allowed and exc.errno not in allowed:
            raise Reached(f"{what}: {_name(exc.errno)} instead of a refusal") from None
        return
    raise Reached(what)


def absent(*paths: str) -> None:
    """Expect that none of ``paths`` can be looked at, let alone read."""
    for path in paths:
        try:
            os.lstat(path)
        except OSError:
            continue
        raise Reached(f"{path} is there")


def unreadable(*paths: str) -> None:
    """Expect that none of ``paths`` gives a single byte or name."""
    for path in paths:
        try:
            seen = bool(os.listdir(path)) if os.path.isdir(path) else bool(_first_byte(path))
        except OSError:
            continue
        if seen:
            raise Reached(f"{path} can be read")


def _first_byte(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(descriptor, 1)
    finally:
        os.close(descriptor)


_LIBC = ctypes.CDLL(None, use_errno=True)
_NUMBERS = {  # name: (x86-64, aarch64)
    "ptrace": (101, 117),
    "syslog": (103, 116),
    "personality": (135, 92),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "mount": (165, 40),
    "umount2": (166, 39),
    "swapon": (167, 224),
    "reboot": (169, 142),
    "sethostname": (170, 161),
    "init_module": (175, 105),
    "delete_module": (176, 106),
    "quotactl": (179, 60),
    "clock_settime": (227, 112),
    "kexec_load": (246, 104),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "perf_event_open": (298, 241),
    "fanotify_init": (300, 262),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "finit_module": (313, 273),
    "kexec_file_load": (320, 294),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "pidfd_open": (434, 434),
    "clone3": (435, 435),
    "pidfd_getfd": (438, 438),
    "mount_setattr": (442, 442),
    "quotactl_fd": (443, 443),
    "memfd_secret": (447, 447),
}


def syscall(name: str, *arguments: int | bytes | None) -> int:
    """Make a system call by number; its error number, or 0 when it went through."""
    number = _NUMBERS[name][platform.machine() == "aarch64"]
    wide = [a if a is None or isinstance(a, bytes) else ctypes.c_long(a) for a in arguments]
    ctypes.set_errno(0)
    return ctypes.get_errno() if _LIBC.syscall(ctypes.c_long(number), *wide) == -1 else 0


def forbidden(name: str, *arguments: int | bytes | None) -> None:
    """Expect the kernel to refuse a call as not allowed, before it looks at ``arguments``."""
    code = syscall(name, *arguments)
    if code not in REFUSALS:
        raise Reached(f"{name}{arguments}: {_name(code) if code else 'went through'}")


def status_line(name: str) -> str:
    """One field of ``/proc/self/status``."""
    with open("/proc/self/status") as file:
        fields = dict(line.rstrip("\n").split(":\t", 1) for line in file)
    return fields[name]


_PRCTL = {"NoNewPrivs": 39, "Seccomp": 21}
_NO_SUCH = {"CapAmb": "0"}  # gVisor has no ambient set


def status(name: str) -> str:
    """The same where ``/proc`` shows less (gVisor): asked of the kernel by prctl(2)."""
    try:
        return status_line(name)
    except KeyError:
        if name in _NO_SUCH:
            return _NO_SUCH[name]
        return str(_LIBC.prctl(_PRCTL[name], 0, 0, 0, 0))


def _name(code: int | None) -> str:
    return errno.errorcode.get(code or 0, f"errno {code}")


def main() -> None:
    """Try what the command line names and print one JSON line for each."""
    for item in _chosen(sys.argv[1:]):
        line = {"name": item.name, "promise": item.promise, "title": item.title, **_try(item)}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def _chosen(names: list[str]) -> list[Attempt]:
    if names == ["quick"]:
        return [item for item in ATTEMPTS.values() if item.quick]
    return [ATTEMPTS[name] for name in names] if names else list(ATTEMPTS.values())


def _try(item: Attempt) -> dict[str, object]:
    try:
        item.body()
    except Reached as exc:
        return {"held": False, "detail": str(exc)}
    except Exception as exc:  # whatever it was, it was not a refusal
        return {"held": False, "detail": f"broke: {type(exc).__name__}: {exc}"}
    return {"held": True, "detail": ""}
