"""Cases that follow a rule: every built-in exception, every signal, and their like."""

from __future__ import annotations

import builtins
import signal
from collections.abc import Iterator

from tests.acceptance.corpus import Case

FATAL_SIGNALS = (
    "SIGHUP", "SIGINT", "SIGQUIT", "SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE",
    "SIGKILL", "SIGUSR1", "SIGSEGV", "SIGUSR2", "SIGALRM", "SIGTERM", "SIGSTKFLT", "SIGXCPU",
    "SIGVTALRM", "SIGPROF", "SIGIO", "SIGPWR", "SIGSYS",
)  # fmt: skip
EXIT_CODES = (0, 1, 2, 3, 42, 100, 123, 124, 125, 126, 127, 128, 129, 130, 134, 137, 139, 143, 255)
UNCONSTRUCTIBLE = {"UnicodeDecodeError", "UnicodeEncodeError", "UnicodeTranslateError"}


def python() -> list[Case]:
    """The generated Python cases."""
    return [*_exceptions(), *_signals(), *_exit_codes(), *_codecs()]


def _exceptions() -> Iterator[Case]:
    """Each built-in exception, raised three calls deep and not caught."""
    for name, kind in sorted(vars(builtins).items()):
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            continue
        if name in UNCONSTRUCTIBLE or "Group" in name or kind.__name__ != name:
            continue
        code = (
            f"def inner(text):\n    raise {name}(text)\n\n\n"
            f"def outer():\n    inner('told by {name}')\n\n\nprint('before')\nouter()\n"
        )
        yield Case(id=f"exceptions/{name}", language="python", code=code)


def _signals() -> Iterator[Case]:
    """Each signal whose default action ends a process, sent to itself with output pending."""
    for name in FATAL_SIGNALS:
        if not hasattr(signal, name):
            continue
        code = (
            f"import os, signal\nprint('seen', flush=True)\nprint('buffered')\n"
            f"os.kill(os.getpid(), signal.{name})\nimport time; time.sleep(5)\n"
        )
        yield Case(id=f"signals/{name}", language="python", code=code)


def _exit_codes() -> Iterator[Case]:
    for code in EXIT_CODES:
        text = f"import sys\nprint('leaving with', {code})\nsys.exit({code})\n"
        yield Case(id=f"exit-codes/{code}", language="python", code=text)


def _codecs() -> Iterator[Case]:
    """Output in encodings other than UTF-8 leaves as the same bytes."""
    for codec in ("utf-16", "utf-32-be", "latin-1", "cp1252", "shift_jis", "gb18030", "koi8-r"):
        text = {"shift_jis": "日本語", "gb18030": "中文", "koi8-r": "привет"}.get(codec, "größe")
        code = f"import sys\nsys.stdout.buffer.write({text!r}.encode({codec!r}))\n"
        yield Case(id=f"codecs/{codec}", language="python", code=code)
