"""What ``compose.yaml``, ``deploy/`` and ``runners/`` say; test_compose.py starts them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.engine.rig import LANGUAGES

from code_executor.sandbox.docker import INIT_LABEL, INIT_VERSION

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


def test_the_runners_images_are_alike_but_for_their_language() -> None:
    """A Dockerfile cannot include another, and each of these can be built alone."""
    stages = [_stages(language) for language in LANGUAGES]
    (init,) = {found[1] for found in stages}
    assert "/src/init.sh" in init
    (held,) = {found[-1].partition("COPY --from=init ")[2] for found in stages}
    for line in ("RUN /tmp/account.sh", f'LABEL {INIT_LABEL}="{INIT_VERSION}"', "USER 1000:1000"):
        assert f"\n{line}" in held


def _stages(language: str) -> list[str]:
    """What comes before the first FROM, and what each of them begins."""
    text = (ROOT / "runners" / language / "Dockerfile").read_text()
    return [stage.strip() for stage in re.split(r"^FROM ", text, flags=re.M)]
