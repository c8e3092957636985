"""The probes as data, and the program made of them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from code_executor.sandbox import seccomp
from code_executor.sandbox.seccomp_probes import (
    BAD_FD,
    MUST_ALLOW,
    MUST_REFUSE,
    Probe,
    as_python,
)


def output(*probes: Probe) -> list[str]:
    """What the program of ``probes`` prints, here, where no filter is."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", as_python(probes)], capture_output=True, text=True, timeout=30
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_a_probe_that_gets_its_answer_is_silent() -> None:
    assert output(Probe("close", (BAD_FD,), 9), Probe("getpid", (), 0)) == ["probed"]


def test_a_probe_that_reaches_the_kernel_is_reported() -> None:
    assert output(Probe("close", (BAD_FD,))) == [
        "close ['0xffffffffffffffff'] gave errno 9 wanted 1",
        "probed",
    ]


def test_an_allowed_probe_that_is_refused_is_reported() -> None:
    first, last = output(Probe("unknown", (), 0))
    assert first == "unknown [] gave errno 38 wanted 0"
    assert last == "probed"


@pytest.mark.parametrize(("machine", "has_open"), [("x86_64", True), ("aarch64", False)])
def test_only_calls_that_the_machine_has_are_made(machine: str, has_open: bool) -> None:
    assert ("'open'" in as_python([Probe("open")], machine)) is has_open


def test_every_probe_names_a_call_of_some_machine() -> None:
    for probe in {*MUST_REFUSE, *MUST_ALLOW}:
        known = [seccomp.number(probe.name, machine) for machine in ("x86_64", "aarch64")]
        assert probe.name == "unknown" or any(number is not None for number in known), probe


def test_no_probe_is_both() -> None:
    refused = {(probe.name, probe.args) for probe in MUST_REFUSE}
    assert not refused & {(probe.name, probe.args) for probe in MUST_ALLOW}
    assert len(refused) == len(MUST_REFUSE)
