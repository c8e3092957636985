"""What a program can see of where it runs, case by case; one that comes to be equal must leave.

Everything else of the corpus ends in a sandbox as it does under the bare interpreter.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

PRELOADED = "a warm interpreter has loaded modules that the program has not asked for"
BOOTSTRAP = "an interpreter started ahead has read the file that waits for the program"

HEAD_START: Mapping[str, str] = {
    "python/introspection/sys-modules-of-a-bare-program": PRELOADED,
    "python/introspection/sys-modules-after-import-json": PRELOADED,
    "python/introspection/gc-freeze-count": PRELOADED,
    "php/process/globals-and-resources": BOOTSTRAP,
    "php/process/included-files": BOOTSTRAP,
    "php/process/ini-prepended-file": BOOTSTRAP,
}
"""Of the head start: the same on every backend."""

OWN_STATUS = "gVisor's own /proc/self/status has no lines about signals"
OWN_NICE = "gVisor's own kernel begins at nice 0, whatever the tests themselves run at"
GVISOR: Mapping[str, str] = {
    "python/introspection/signals-of-a-child": OWN_STATUS,
    "python/introspection/signals-of-itself": OWN_STATUS,
    "node/process/signals-of-itself-and-a-child": OWN_STATUS,
    "ruby/basics/signals-of-itself-and-a-child": OWN_STATUS,
    "php/process/signals-of-itself-and-a-child": OWN_STATUS,
    "go/basics/signals-of-itself-and-a-child": OWN_STATUS,
    **({"python/introspection/nice-and-affinity": OWN_NICE} if os.nice(0) else {}),
}
"""Of a kernel that is not the host's."""

BACKENDS: Mapping[str, Mapping[str, str]] = {
    "runc": HEAD_START,
    "gvisor": {**HEAD_START, **GVISOR},
    "docker": HEAD_START,
}
