"""How init is started as PID 1 of a container that an OCI runtime or an engine has isolated.

The command line is described in ``init/contained.c``. Everywhere but in the native backend an
interpreter is started ahead inside its own sandbox: Node.js, Ruby and PHP as there, Python with the
zygote's bootstrap in its single-use form, because no zygote can fork into a container.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from code_executor.languages import Flavour, Language, Warm
from code_executor.plan import default_env
from code_executor.sandbox.build import Binaries
from code_executor.sandbox.launcher import environment
from code_executor.sandbox.zygote import ZYGOTE_HOME, warm_files

INIT = "/opt/ahead/init"
FILTER = "/opt/ahead/filter"


def ahead_files(built: Binaries) -> dict[str, Path]:
    """What started-ahead interpreters load, and init itself, by path in the container's root."""
    return {INIT[1:]: built.launcher, **warm_files(built)}


def init_command(
    language: Language, flavour: Flavour, *, processes: int = 0, filtered: bool = False
) -> list[str]:
    """The container's command: init, and what it starts ahead for this flavour.

    ``processes`` is RLIMIT_NPROC of the program, 0 to leave it to the container's own limit: where
    the container has no user namespace of its own, all of them share one count. ``filtered`` has
    init install the system call filter of the file ``FILTER``.
    """
    argv = [INIT, "--contained", "--processes", str(processes)]
    if filtered:
        argv += ["--filter", FILTER]
    env, command = _started_ahead(language, flavour)
    for pair in environment(env):
        argv += ["--env", pair]
    if command:
        argv += ["--warm", language.source, *command]
    return argv


def _started_ahead(language: Language, flavour: Flavour) -> tuple[Mapping[str, str], Sequence[str]]:
    env = default_env(language)
    match flavour.warm:
        case Warm.EXEC:
            return env, language.ahead
        case Warm.ZYGOTE:
            preload = ",".join(flavour.preload)
            single = {"PYTHONPATH": f"/{ZYGOTE_HOME}", "CE_PRELOAD": preload, "CE_SINGLE": "1"}
            return {**env, **single}, language.run
        case Warm.NONE:
            return {}, ()
