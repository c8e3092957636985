"""Hostile attempts: a program that runs inside a sandbox and tries what must not work.

The package is staged into the sandbox as source files and run there (``isolation.py`` in the
parent package does that); it uses nothing but Python's standard library. Each attempt is a
function that returns when it was held back and raises :class:`harness.Reached` when it got
through; an attempt that breaks in another way counts as having got through. One JSON line per
attempt goes to stdout.

    main.py                    tries every attempt
    main.py quick              those marked quick: the probe at the start of the service
    main.py NAME...            the named ones
"""

from __future__ import annotations

from . import files, identity, kernel, network, processes
from .harness import ATTEMPTS, main

__all__ = ["ATTEMPTS", "files", "identity", "kernel", "main", "network", "processes"]
