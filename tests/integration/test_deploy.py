"""What ``compose.yaml`` and ``deploy/`` say; test_compose.py starts them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
COMPOSE = (ROOT / "compose.yaml").read_text()


def _allowed(file: str) -> set[str]:
    rules: list[dict[str, Any]] = json.loads((ROOT / file).read_text())["syscalls"]
    return {name for rule in rules if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}


def test_a_program_s_filter_is_within_the_service_s() -> None:
    """Both hold it: what only the inner one allowed would be forbidden in a container alone."""
    assert _allowed("seccomp/default.json") <= _allowed("deploy/seccomp.json")


def test_the_service_s_filter_has_no_call_on_the_whole_machine() -> None:
    machine = {"bpf", "init_module", "kexec_load", "open_by_handle_at", "perf_event_open"}
    machine |= {"finit_module", "reboot", "swapon", "syslog", "settimeofday", "io_uring_setup"}
    assert _allowed("deploy/seccomp.json") & (machine | {"ptrace", "keyctl", "iopl"}) == set()


def test_every_capability_is_explained() -> None:
    match = re.search(r"cap_add: \[(.*)\]", COMPOSE)
    assert match is not None
    explained = re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "docs/compose.md").read_text(), re.M)
    assert match[1].split(", ") == sorted(explained)


def test_nothing_is_switched_off_by_default() -> None:
    """Not even for the service; AppArmor's profile forbids the mounts that make a sandbox."""
    assert re.findall(r"\S*=unconfined", COMPOSE) == ["apparmor=unconfined"]
    assert "privileged" not in COMPOSE
    assert "DISABLE_SANDBOX_SECURITY" not in COMPOSE
    waived = [line.strip() for line in COMPOSE.splitlines() if "WAIVE_PROMISES" in line]
    assert waived == ["WAIVE_PROMISES: ${WAIVE_PROMISES:-}"]  # who starts it may; nobody does
