"""Become another program under a system-call filter: ``under_filter.py FILTER PROGRAM ARG…``.

``FILTER`` is a file with the bytes that ``seccomp.compile`` gives. Runs as a process of its own,
so that a test's process never filters itself; uses nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2


class SockFprog(ctypes.Structure):
    """``struct sock_fprog`` of <linux/filter.h>."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install(program: bytes) -> None:
    """Filter this process and all it will start."""
    libc = ctypes.CDLL(None, use_errno=True)
    prog = SockFprog(len(program) // 8, program)
    for call in (
        (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(prog), 0, 0),
    ):
        if libc.prctl(*call) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))


if __name__ == "__main__":
    install(Path(sys.argv[1]).read_bytes())
    os.execv(sys.argv[2], sys.argv[2:])
