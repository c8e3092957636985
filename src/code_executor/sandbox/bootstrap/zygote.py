"""Turns a starting CPython into a zygote; seen by it as ``sitecustomize``.

Theory of operation. The zygote is started as ``python3 main.py`` in an empty ``/work``, with this
directory in ``PYTHONPATH``. CPython imports ``sitecustomize`` as the last step of its own start-up.
Here that import loads what the zygote is to have warm and leaves a path hook behind. The hook is
called when CPython is about to run its file, with no Python frame beneath, and in it the zygote
serves (``init/cpython.c``): it forks on request, and a child, which is in its sandbox by then,
calls :func:`begin` with the job of its run, runs ``/work/main.py`` and finalizes, both with
CPython's own functions. So ``__main__``, tracebacks, the recursion limit, exit codes and ``atexit``
are what ``python3 main.py`` gives.

Where no zygote can fork into a sandbox (``CE_SINGLE``, init/contained.c), the interpreter starts in
the sandbox, waits in the hook for the job of its only run and goes on like such a child.

What differs from a new interpreter is written down in ``docs/languages.md``.
"""

import atexit
import gc
import importlib
import itertools
import os
import sys
import time
import types
from collections.abc import Callable
from typing import Any

HERE = "/opt/ahead/python"
OWN = ("PYTHONPATH", "CE_PRELOAD", "CE_SINGLE", "CE_OWN_FILTER")
MAIN = "/work/main.py"
WARM: set[str] = set()
AT_FORK: list[dict[str, Any]] = []  # what modules want called around a fork
NOT_AFTER_FORK = {"_after_fork", "_after_at_fork_child_reinit_locks", "_at_fork_reinit"}
SPECIAL = {"sys", "builtins", "__main__"}
OBJECTS_MAX = 5000
HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made at run time, by a class statement above all
FLAGS, BASES, VARIABLES = (  # of a class, whatever its metaclass would answer
    type.__dict__[name].__get__ for name in ("__flags__", "__mro__", "__dict__")
)
REFERENCE = sys.modules["_weakref"].ref
PLAIN = {
    *(
        REFERENCE,
        object,
        type,
        dict,
        list,
        tuple,
        set,
        frozenset,
        property,
        staticmethod,
        classmethod,
        super,
        slice,
        enumerate,
        filter,
        map,
        reversed,
        zip,
    ),
    *(getattr(types, name) for name in types.__all__ if name.endswith(("Type", "Alias"))),
    *(BaseException, *BaseException.__subclasses__(), *Exception.__subclasses__()),
} - {types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType}
PLAIN_IDS: set[int] = set()  # to be found by: a metaclass can have an opinion on being equal
FORGETS = {"_destroy", "_localdummy_destroyed"}  # what C hangs on a weak reference for itself
STREAMS = (id(sys.stdout), id(sys.stderr))  # a reference would keep them from their end


def warm_up() -> None:
    """Import what programs import; what is missing is not this program's business."""
    register = os.register_at_fork

    def register_and_tell(**hooks: Any) -> None:
        AT_FORK.append(hooks)
        register(**hooks)

    os.register_at_fork = register_and_tell
    for name in os.environ["CE_PRELOAD"].split(","):
        try:
            if name:
                importlib.import_module(name)
        except ImportError:
            pass
    os.register_at_fork = register


def after_fork() -> tuple[tuple[Callable[..., Any], Any], ...]:
    """What a child has to call, in order, as pairs of a function and its argument.

    Not what sets up locks and threads anew (``NOT_AFTER_FORK``): the zygote forks with one thread
    that holds no lock. Such calls write all over the pages that a child shares with the zygote.
    """
    calls: list[tuple[Callable[..., Any], Any]] = []
    for hook in (hooks.get("after_in_child") for hooks in AT_FORK):
        of: Any = getattr(hook, "__self__", None)
        if getattr(hook, "__name__", "") in NOT_AFTER_FORK:
            continue
        if type(of).__module__ == "random" and of.gauss_next is None:
            # What its seed() comes to: a new state, from the system's random numbers.
            calls.append((sys.modules["_random"].Random.seed, of))
        elif hook is not None:
            calls.append((types.MethodType(lambda hook: hook(), hook), None))
    if "numpy.random" in sys.modules:
        calls.append((sys.modules["numpy.random"].seed, None))
    if "logging" in sys.modules:
        calls.append((restart_clock, sys.modules["logging"]))
    return tuple(calls)


def restart_clock(logging: Any) -> None:
    """``relativeCreated`` of a log record counts from here."""
    now = time.time_ns() if isinstance(logging._startTime, int) else time.time()
    logging._startTime = now


def make_room() -> None:
    """The ``__main__`` of the program: what each child would do first is done once, before."""
    sys.path_hooks.remove(HOOK)
    sys.path.insert(0, "/work")
    main = type(sys)("__main__")  # a new one: the old one is frozen, and would never be collected
    main.__loader__ = LOADER
    main.__dict__.update(
        __annotations__={}, __builtins__=sys.modules["builtins"], __file__=MAIN, __cached__=None
    )
    sys.modules["__main__"] = main
    os.write(2, b"")  # looked up in the C library with the first call, which writes to shared pages


def know_plain() -> None:
    """Types of loaded modules whose objects are as plain: no more than what they hold."""
    for name in ("_collections", "_functools", "itertools"):
        kinds = vars(sys.modules[name]).values() if name in sys.modules else ()
        PLAIN.update(kind for kind in kinds if isinstance(kind, type))
    contextvars: Any = sys.modules.get("contextvars")
    if contextvars:  # a variable's value is kept in what has no name to find it by
        context = contextvars.Context()
        context.run(contextvars.ContextVar("").set, None)
        tree = gc.get_referents(context)
        PLAIN.update({contextvars.Context, *map(type, tree), *map(type, gc.get_referents(*tree))})


def begin(job: bytes) -> None:
    """Arguments and environment of the run (``init/job.c``, release), where they are not USUAL."""
    parts = os.fsdecode(job).split("\0")[:-1]
    count = int(parts[0])
    sys.argv[1:] = parts[1 : 1 + count]
    sys.orig_argv[2:] = parts[1 : 1 + count]
    wanted = dict(part.split("=", 1) for part in parts[1 + count :])
    for name in [name for name in os.environ if name not in wanted]:
        del os.environ[name]
    for name, value in wanted.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def end() -> int:
    """The first steps of the interpreter's end, in its order; how much of the rest is needed.

    0: all of it. 1: not what frees memory, which nobody can observe; for that no other thread may
    have Python frames, and both streams must be the original ones (those flush as they should, or
    their descriptors tell: ``init/cpython.c``). 2: nothing, there is nothing to tear down.
    """
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    atexit._run_exitfuncs()
    if len(sys._current_frames()) > 1 or (id(sys.stdout), id(sys.stderr)) != STREAMS:
        return 0
    if nothing_to_tear_down():
        return 2
    spare_the_warm()
    return 1


def nothing_to_tear_down() -> bool:
    """Whether no object of the program can notice its end: no finalizer, weak reference, file.

    Judged for a small program with the modules that were warm; any other is torn down in full.
    """
    objects = gc.get_objects()
    return (
        NATIVE.untouched(objects)
        and len(objects) < OBJECTS_MAX
        and all(map(is_plain, {id(type(o)): type(o) for o in objects}.values()))
        and all(map(is_quiet, (o for o in objects if issubclass(type(o), REFERENCE))))
    )


def is_plain(kind: type) -> bool:
    """Whether the end of an object of this type is not observable."""
    return id(kind) in PLAIN_IDS or all(
        id(base) in PLAIN_IDS or (FLAGS(base) & HEAP_TYPE and "__del__" not in VARIABLES(base))
        for base in BASES(kind)
    )


def is_quiet(reference: Any) -> bool:
    """Whether a weak reference has no callback but one with which C code forgets the object."""
    call = reference.__callback__
    return call is None or (
        type(call) is types.BuiltinFunctionType
        and call.__name__ in FORGETS
        and type(call.__self__) is REFERENCE
    )


def spare_the_warm() -> None:
    """Take what was loaded before the fork out of the interpreter's tear-down.

    Tearing a module down writes to every object of it, and each first write to a page shared with
    the zygote is a copy. Nobody sees the difference: these modules hold nothing of the program's.
    """
    kept = [sys.modules.pop(name) for name in WARM if name in sys.modules]
    NATIVE.keep(kept)


def vanish() -> None:
    """Remove this module, its directory and its variables; load the system's ``sitecustomize``."""
    for name in OWN:
        NATIVE.forget(name)
        os.environ.pop(name, None)
    sys.path.remove(HERE)
    sys.path_importer_cache.pop(HERE, None)
    del sys.modules["sitecustomize"], sys.modules["zygote"]
    try:
        importlib.import_module("sitecustomize")
    except ImportError:
        sys.modules["sitecustomize"] = type(sys)("sitecustomize")
    sys.modules.pop("rehearsal", None)


def install() -> None:
    """Warm up, disappear, and leave the hook.

    Raises:
        ImportError: an interpreter that this was never tried with; its runs start cold.
    """
    if sys.version_info < (3, 10):  # noqa: UP036 - the interpreter of programs, not of the service
        raise ImportError("needs Python 3.10")
    single = "CE_SINGLE" in os.environ
    warm_up()
    vanish()
    variables = (name + b"=" + value for name, value in os.environb.items())
    usual = b"".join(part + b"\0" for part in (b"0", *variables))
    WARM.update(sys.modules)
    WARM.difference_update(SPECIAL)
    know_plain()
    PLAIN_IDS.update(map(id, PLAIN))
    seen = (gc.get_objects, atexit._ncallbacks, tuple(PLAIN), REFERENCE)
    minor = sys.version_info.minor
    NATIVE.setup(make_room, begin, end, after_fork(), usual, minor, single, *seen)
    sys.path_hooks.insert(0, HOOK)
    threading: Any = sys.modules.get("threading")
    if hasattr(threading, "_counter"):  # threads of what was warmed up have had numbers
        threading._counter = itertools.count(1).__next__
    gc.collect()
    gc.freeze()


LOADER = sys.modules["_frozen_importlib_external"].SourceFileLoader("__main__", MAIN)
NATIVE = importlib.import_module("zygote")
HOOK = NATIVE.serve_and_run
install()
