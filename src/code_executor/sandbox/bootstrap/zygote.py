"""Turns a starting CPython into a zygote; seen by it as ``sitecustomize``.

Theory of operation. The zygote is started as ``python3 main.py`` in an empty ``/work``, with this
directory in ``PYTHONPATH``. CPython imports ``sitecustomize`` as the last step of its own start-up,
just before it opens the program's file. Here that import loads what the zygote is to have warm and
then never returns in the zygote itself: it forks on request (``init/zygote.c``). In a child, which
is in its sandbox by then, it waits for the job, puts the arguments and the environment of the run
in place, removes every trace of itself, and returns. CPython goes on as it always does: it reads
``/work/main.py``, runs it, finalizes. So ``__main__``, ``sys.path[0]``, tracebacks, exit codes and
``atexit`` are not imitated; they are the interpreter's own.
"""

import ctypes
import gc
import importlib
import os
import sys

HERE = "/tmp/.zygote"  # a directory of the zygotes' root that no sandbox sees


class Hooks(ctypes.Structure):
    """The interpreter's own calls around a fork (``PyOS_*Fork*``)."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("before", "parent", "child")]


def warm_up():
    """Import what programs import; what is missing is not this program's business."""
    for name in os.environ.get("CE_PRELOAD", "").split(","):
        try:
            if name:
                importlib.import_module(name)
        except ImportError:
            pass


def hooks():
    """Addresses of CPython's fork hooks."""
    names = ("PyOS_BeforeFork", "PyOS_AfterFork_Parent", "PyOS_AfterFork_Child")
    return Hooks(
        *(ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p) for name in names)
    )


def apply(job):
    """Arguments and environment of the run, from init's job (``init/init.c``, release)."""
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
    if "TZ" in wanted and "time" in sys.modules:
        sys.modules["time"].tzset()


def reseed():
    """Random state that a fork would share; ``random`` itself reseeds after a fork."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def serve():
    """The zygote's life; returns in children only, with the job done."""
    library = ctypes.PyDLL(HERE + "/zygote.so", use_errno=False)
    library.zygote_await.restype = ctypes.c_size_t
    warm_up()
    for name in ("PYTHONPATH", "CE_PRELOAD"):
        library.zygote_forget(name.encode())
        del os.environ[name]
    gc.collect()
    gc.freeze()
    calls = hooks()
    if library.zygote_serve(ctypes.byref(calls)) != 0:
        sys.stderr.write("zygote: cannot serve\n")
        os._exit(1)
    reseed()
    job = ctypes.c_char_p()
    size = library.zygote_await(ctypes.byref(job))
    apply(ctypes.string_at(job, size))


def vanish(before):
    """Remove this module, its directory and everything only it has imported."""
    sys.path.remove(HERE)
    for name in set(sys.modules) - before:
        del sys.modules[name]
    sys.path_importer_cache.pop(HERE, None)


loaded = set(sys.modules)
serve()
