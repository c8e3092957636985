"""From settings to live objects, with the fake backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from code_executor.compose import (
    FORKED_MAX,
    Report,
    build,
    examine,
    make_backend,
    make_languages,
    make_objects,
    make_pool,
    make_records,
    run_local,
)
from code_executor.config import BadSettings, Settings
from code_executor.errors import HostUnfit, SandboxUnavailable
from code_executor.languages import by_name
from code_executor.model import LanguageStatus, Principal, Promise, RunRequest, RunStatus
from code_executor.observe import Metrics
from code_executor.sandbox.fake import FakeBackend

CALLER = Principal("dev", 5, 10)
AVAILABLE = LanguageStatus("python", "Python", "main.py", True)
KEPT = Promise("P1", "t", True, "e")


def settings(tmp_path: Path, **given: Any) -> Settings:
    defaults: dict[str, Any] = {"data_dir": tmp_path / "data", "sandbox_backend": "fake"}
    return Settings.load(**(defaults | given))


async def test_the_service_starts_runs_and_closes(tmp_path: Path) -> None:
    application = build(settings(tmp_path))
    await application.start()
    run = await application.service.run(CALLER, RunRequest("python", "x"))
    assert (run.status, run.stdout) == (RunStatus.SUCCEEDED, "ok\n")
    assert (await application.service.ready()).ok
    await application.close()
    await application.close()
    with pytest.raises(SandboxUnavailable, match="shutting down"):
        await application.pool.take("python")


async def test_what_was_answered_is_there_after_a_restart(tmp_path: Path) -> None:
    first = build(settings(tmp_path))
    await first.start()
    run = await first.service.run(CALLER, RunRequest("python", "x"))
    await first.close()
    second = build(settings(tmp_path))
    await second.start()
    assert await second.service.get_run(CALLER, run.id) == run
    await second.close()


@pytest.mark.parametrize("name", ["native", "gvisor", "runc", "docker", "fake"])
def test_the_backend_is_the_one_of_the_setting(tmp_path: Path, name: str) -> None:
    given = settings(tmp_path, sandbox_backend=name)
    assert make_backend(given, make_languages(given)).name == name


async def test_two_services_do_not_share_a_data_directory(tmp_path: Path) -> None:
    first, second = build(settings(tmp_path)), build(settings(tmp_path))
    await first.start()
    with pytest.raises(HostUnfit, match="Another service"):
        await second.start()
    await first.close()
    await second.start()
    await second.close()


async def test_a_start_that_fails_leaves_nothing(tmp_path: Path) -> None:
    application = build(settings(tmp_path, waive_promises="P2"))
    broken = FakeBackend(promises=[Promise("P1", "t", False, "e")])
    application.service._examiner._backend = broken
    with pytest.raises(HostUnfit, match="P1"):
        await application.start()
    again = build(settings(tmp_path))
    await again.start()  # the lock is free
    await again.close()


async def test_a_local_run_prepares_its_own_flavour_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    prepare = FakeBackend.prepare

    async def watched(self: FakeBackend, flavour: str) -> Any:
        made.append(flavour)
        return await prepare(self, flavour)

    monkeypatch.setattr(FakeBackend, "prepare", watched)
    outcome = await run_local(settings(tmp_path), RunRequest("python", "import numpy"))
    assert (outcome.stdout.data, made) == (b"ok\n", ["python-data"])


async def test_examining_finds_promises_and_languages(tmp_path: Path) -> None:
    report = await examine(settings(tmp_path))
    assert report.ok
    assert {status.id for status in report.languages} >= {"python", "go"}


@pytest.mark.parametrize(
    ("report", "ok"),
    [
        (Report([KEPT], [AVAILABLE]), True),
        (Report([], []), False),
        (Report([KEPT, Promise("P2", "t", False, "e")], [AVAILABLE]), False),
        (Report([Promise("P2", "t", False, "e", waived=True)], [AVAILABLE]), True),
        (Report([KEPT], [AVAILABLE], HostUnfit("no", fix="yes")), False),
        (Report([KEPT], [AVAILABLE], conformance=[("P1", "t", None)]), True),
        (Report([KEPT], [AVAILABLE], conformance=[("P1", "t", "broke")]), False),
    ],
)
def test_a_report_is_good_when_nothing_is_missing(report: Report, ok: bool) -> None:
    assert report.ok is ok


def test_interpreters_are_looked_for_where_sandboxes_find_them(tmp_path: Path) -> None:
    runtime = tmp_path / "runtime"
    (runtime / "go" / "bin").mkdir(parents=True)
    (runtime / "go" / "bin" / "go").touch()
    named = by_name(make_languages(settings(tmp_path, runtime_dir=runtime)))
    assert named["go"].version == ("/opt/go/bin/go", "version")


def test_a_bad_language_file_is_a_bad_setting(tmp_path: Path) -> None:
    (tmp_path / "lua.toml").write_text("id = 1")
    with pytest.raises(BadSettings, match=r"LANGUAGES_DIR: lua\.toml"):
        make_languages(settings(tmp_path, languages_dir=tmp_path))


@pytest.mark.parametrize(
    ("warm", "most", "floor", "cap"), [(2, 16, 2, 16), (10, 16, 2, 16), (0, 16, 0, 0)]
)
def test_the_warm_pool_stays_within_its_number(
    tmp_path: Path, warm: int, most: int, floor: int, cap: int
) -> None:
    given = settings(tmp_path, warm_pool=warm, warm_pool_max=most)
    languages = make_languages(given)
    pool = make_pool(given, make_backend(given, languages), languages, on_level=lambda _: None)
    sizes = {shelf.size.floor for shelf in pool._shelves.values()}
    assert sizes == {floor}
    assert {shelf.size.cap for shelf in pool._shelves.values()} == {cap}


@pytest.mark.parametrize(("backend", "forked"), [("native", FORKED_MAX), ("runc", 256)])
def test_what_is_forked_waits_in_smaller_numbers(tmp_path: Path, backend: str, forked: int) -> None:
    given = settings(tmp_path, sandbox_backend=backend)
    languages = make_languages(given)
    pool = make_pool(given, FakeBackend(), languages, on_level=lambda _: None)
    caps = {name: shelf.size.cap for name, shelf in pool._shelves.items()}
    assert caps["python"] == caps["python-data"] == forked
    assert caps["node"] == 256


def test_what_this_version_cannot_serve_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="sqlite:///PATH only"):
        make_records(settings(tmp_path, database_url="postgresql://h/d"), Metrics())
    for url in ("s3://bucket", "file://host/path"):
        with pytest.raises(BadSettings, match="file:///PATH only"):
            make_objects(settings(tmp_path, storage_url=url))


def test_a_storage_directory_with_a_space_is_one(tmp_path: Path) -> None:
    make_objects(settings(tmp_path, storage_dir=tmp_path / "my files"))
    assert (tmp_path / "my files").is_dir()
