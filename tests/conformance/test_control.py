"""The control group: without a sandbox the hostile attempts get through.

A suite that passes everywhere proves nothing. The quick attempts are run by an unprivileged
user in a plain process (only the quick ones: they do no harm where nothing holds them back).
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.acceptance.bare import run_bare

from code_executor.model import Outcome, Output, RunStatus
from code_executor.sandbox.conformance.attempts import ATTEMPTS
from code_executor.sandbox.conformance.bench import plan
from code_executor.sandbox.conformance.isolation import MAIN, sources, verdicts

pytestmark = pytest.mark.sandbox

THROUGH = {
    "files_of_the_host",
    "see_processes_of_the_host",
    "set_user_id_programs",
    "devices_beyond_the_minimum",
    "new_privileges",
    "dangerous_subsystems",
}
"""What no Linux host refuses an ordinary process."""


def test_unsandboxed_attempts_get_through(tmp_path: Path) -> None:
    planned = plan("python", MAIN, sources=sources(), args=("quick",))
    end = run_bare(planned, tmp_path)
    outcome = Outcome(RunStatus.SUCCEEDED, stdout=Output(end.stdout), stderr=Output(end.stderr))
    found = {verdict.name: verdict.held for verdict in verdicts(outcome, ("quick",))}
    assert set(found) == {item.name for item in ATTEMPTS.values() if item.quick}
    assert {name for name in THROUGH if found[name]} == set()
