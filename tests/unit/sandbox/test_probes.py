"""The look at a host: each promise broken by a scripted backend is seen, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from code_executor.errors import SandboxUnavailable
from code_executor.languages import load
from code_executor.model import ArtifactFile, Outcome, Output, Plan, Promise, RunStatus, Usage
from code_executor.sandbox import probes
from code_executor.sandbox.conformance.attempts import ATTEMPTS
from code_executor.sandbox.fake import FakeBackend, said

LANGUAGES = {language.id: language for language in load()}
PYTHON = LANGUAGES["python"]
QUICK = [item for item in ATTEMPTS.values() if item.quick]
GONE = "read_the_init"  # the attempt that gets through, and one that gVisor declares


def told(name: str, *, held: bool = True) -> str:
    item = ATTEMPTS[name]
    found = {"name": name, "title": item.title, "promise": item.promise, "held": held}
    return json.dumps(found | {"detail": "" if held else "it was read"}) + "\n"


HELD = "".join(told(item.name) for item in QUICK)
THROUGH = "".join(told(item.name, held=item.name != GONE) for item in QUICK)
SILENT = "".join(told(item.name) for item in QUICK if item.name != GONE)


class Host:
    """Answers every probe as a sound host does, except where a test says otherwise."""

    def __init__(self) -> None:
        self.hostile = said(HELD)
        self.environment: Callable[[Plan], str] = lambda plan: "".join(
            f"{name} {value}\n" for name, value in sorted(plan.env)
        )
        self.deadline = Outcome(RunStatus.TIMEOUT, usage=Usage(wall_ms=104))
        self.memory = Outcome(RunStatus.OOM)
        self.neighbours = iter(["['0', '1', '1']\n[] []\n", "['0', '3', '1']\n[] []\n"])
        self.truth = replace(said(exit_code=137), artifacts=(ArtifactFile("file", b"plain"),))

    def __call__(self, plan: Plan) -> Outcome:
        code = plan.files[0].content.decode()
        if code == probes.QUICK_MAIN:
            return self.hostile
        if "os.environ" in code:
            return said(self.environment(plan))
        if "setsid" in code:
            return self.deadline
        if "bytearray" in code:
            return self.memory
        if "uid_map" in code:
            return said(next(self.neighbours))
        return self.truth


async def rows(host: Host) -> dict[str, Promise]:
    backend = FakeBackend(host)
    found = await probes.probe(backend, PYTHON)
    assert backend.live == set()
    assert len({row.id for row in found}) == len(found)
    return {row.id: row for row in found}


def broken(found: dict[str, Promise]) -> set[str]:
    assert all((row.fix is None) is row.kept for row in found.values())
    return {row.id for row in found.values() if not row.kept}


async def test_a_sound_host_keeps_every_promise() -> None:
    found = await rows(Host())
    assert broken(found) == set()
    assert list(found) == ["P1", "P2", "P3", "P4", "P5", "P6", "P7", "P8", "P12"]
    assert all(row.evidence for row in found.values())


@pytest.mark.parametrize(
    "hostile",
    [
        said(THROUGH),
        said(SILENT),
        said(""),
        said(HELD, exit_code=1),
        Outcome(RunStatus.TIMEOUT, stdout=Output(HELD.encode(), len(HELD))),
    ],
    ids=["one got through", "one did not report", "none ran", "failed", "never ended"],
)
async def test_hostile_attempts_that_do_not_all_hold_break_p1(hostile: Outcome) -> None:
    host = Host()
    host.hostile = hostile
    assert broken(await rows(host)) == {"P1"}


async def test_what_got_through_is_told() -> None:
    host = Host()
    host.hostile = said(THROUGH)
    assert (await rows(host))["P1"].evidence == f"{ATTEMPTS[GONE].title}: it was read"


async def test_a_declared_difference_of_the_backend_is_told_and_breaks_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FakeBackend, "name", "gvisor")
    host = Host()
    host.hostile = said(THROUGH)
    row = (await rows(host))["P1"]
    assert row.kept
    assert "read_the_init" in row.evidence


async def test_user_ids_may_be_alike_where_they_are_not_the_hosts() -> None:
    host = Host()
    host.neighbours = iter(["['0', '0', '9']\n[] []\n"] * 2)
    found = await probes.probe(FakeBackend(host), PYTHON, host_ids=False)
    assert broken({row.id: row for row in found}) == set()


@pytest.mark.parametrize("more", ["SECRET x\n", ""])
async def test_any_other_environment_breaks_p7(more: str) -> None:
    host = Host()
    sound = host.environment
    host.environment = lambda plan: sound(plan) + more if more else ""
    assert broken(await rows(host)) == {"P7"}


async def test_an_endless_program_that_is_not_ended_breaks_p2_and_p3() -> None:
    host = Host()
    host.deadline = said()
    assert broken(await rows(host)) == {"P2", "P3"}


async def test_one_that_is_ended_late_breaks_p3() -> None:
    host = Host()
    host.deadline = Outcome(RunStatus.TIMEOUT, usage=Usage(wall_ms=1101))
    assert broken(await rows(host)) == {"P3"}


async def test_memory_without_a_bound_breaks_p4() -> None:
    host = Host()
    host.memory = said("1\n")
    assert broken(await rows(host)) == {"P4"}


@pytest.mark.parametrize(
    "pair",
    [
        ["['0', '1', '1']\n[] []\n"] * 2,
        ["['0', '1', '1']\n[] []\n", "['0', '3', '1']\n['mark'] []\n"],
        ["", ""],
    ],
    ids=["one user id", "a file of the other's", "nothing was said"],
)
async def test_runs_that_see_each_other_break_p6(pair: list[str]) -> None:
    host = Host()
    host.neighbours = iter(pair)
    assert broken(await rows(host)) == {"P6"}


async def test_a_followed_link_breaks_p5() -> None:
    host = Host()
    host.truth = replace(host.truth, artifacts=(ArtifactFile("link", b"root:x"),))
    assert broken(await rows(host)) == {"P5"}


async def test_an_exit_code_taken_for_a_verdict_breaks_p8() -> None:
    host = Host()
    host.truth = replace(host.truth, status=RunStatus.KILLED)
    assert broken(await rows(host)) == {"P8"}


async def test_a_probe_that_cannot_run_is_never_a_kept_promise() -> None:
    backend = FakeBackend(Host())
    backend.prepare_failures.append(SandboxUnavailable("no sandbox", step="clone"))
    found = {row.id: row for row in await probes.probe(backend, PYTHON)}
    assert broken(found) == {"P12"}
    assert "hostile" in found["P12"].evidence
    assert "P1" not in found


async def test_words_that_are_not_the_attempts_own_are_a_failed_probe() -> None:
    host = Host()
    host.hostile = said("Traceback\n")
    assert broken(await rows(host)) == {"P12"}


async def test_without_python_nothing_is_proven() -> None:
    (row,) = await probes.probe(FakeBackend(), None)
    assert (row.id, row.kept) == ("P12", False)


# ── languages ──


async def test_version_and_packages_are_asked_of_the_interpreter() -> None:
    def script(plan: Plan) -> Outcome:
        asked = plan.steps[0].argv
        return said("numpy==2.1\nsix==1\n" if asked == PYTHON.packages else "Python 3.11.2\n")

    status = await probes.language_status(FakeBackend(script), PYTHON)
    assert (status.available, status.version) == (True, "3.11.2")
    assert status.packages == ("numpy==2.1", "six==1")
    assert status.reason is None


@pytest.mark.parametrize(
    ("words", "version"),
    [
        ("v18.20.4\n", "18.20.4"),
        ("ruby 3.1.2p20 (2022-04-12 revision 4491bb740a) [x86_64-linux-gnu]", "3.1.2p20"),
        ("PHP 8.2.29 (cli) (built: Jul  3 2025)", "8.2.29"),
        ("go version go1.24.4 linux/amd64", "1.24.4"),
    ],
)
async def test_the_version_is_found_in_what_each_interpreter_says(words: str, version: str) -> None:
    status = await probes.language_status(FakeBackend(lambda _: said(words)), LANGUAGES["node"])
    assert (status.version, status.packages) == (version, ())


@pytest.mark.parametrize("outcome", [said("none"), said("1.2", exit_code=127)])
async def test_an_interpreter_that_does_not_tell_its_version_is_not_there(outcome: Outcome) -> None:
    status = await probes.language_status(FakeBackend(lambda _: outcome), PYTHON)
    assert not status.available
    assert status.reason is not None
    assert PYTHON.install in status.reason


async def test_an_interpreter_that_is_not_installed_is_named_with_what_installs_it() -> None:
    backend = FakeBackend()
    backend.run_failures.append(SandboxUnavailable("No such file or directory", step="exec"))
    status = await probes.language_status(backend, LANGUAGES["go"])
    assert status.reason is not None
    assert "exec" in status.reason
    assert "apt-get install golang-go" in status.reason
    assert backend.live == set()


async def test_a_backend_says_what_brings_a_language_to_it() -> None:
    backend = FakeBackend()
    backend.prepare_failures.append(SandboxUnavailable("there is no image", step="image"))
    status = await probes.language_status(backend, LANGUAGES["go"], install="make images")
    assert status.reason is not None
    assert status.reason.endswith(": make images")
    assert "apt-get" not in status.reason
