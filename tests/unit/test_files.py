"""Files: tenancy, expiry, sizes, types by name; on real records and objects."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from code_executor.errors import InvalidRequest, NotFound, PayloadTooLarge
from code_executor.files import Files, ServiceConfig, content_type, found, new_id
from code_executor.model import (
    DEFAULT_LIMITS,
    ArtifactFile,
    InputFile,
    Run,
    RunStatus,
    StoredFile,
)
from code_executor.objects import local_objects
from code_executor.store import SqliteRecords

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RUN = Run("run_1", "a", "python", RunStatus.RUNNING, "0" * 64, DEFAULT_LIMITS, NOW)


class Watch:
    """A clock that is set."""

    def __init__(self) -> None:
        self.time = NOW

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return 0.0


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
async def records(tmp_path: Path) -> AsyncIterator[SqliteRecords]:
    records = SqliteRecords(f"sqlite:///{tmp_path / 'records.db'}")
    await records.start()
    yield records
    await records.close()


@pytest.fixture
def files(records: SqliteRecords, tmp_path: Path, watch: Watch) -> Files:
    objects, _ = local_objects(tmp_path / "objects")
    config = ServiceConfig(artifact_ttl=timedelta(hours=1), max_file_bytes=100, max_files_bytes=150)
    return Files(records, objects, watch, config, new_id)


async def upload(files: Files, content: bytes = b"hello", tenant: str = "a") -> StoredFile:
    return await files.upload(
        tenant, name="x.txt", content=content, content_type="text/plain", purpose="user_data"
    )


async def test_an_upload_is_kept_as_it_came(files: Files) -> None:
    file = await upload(files)
    assert await files.get("a", file.id) == file
    assert (file.size, file.sha256) == (5, hashlib.sha256(b"hello").hexdigest())
    assert (file.created_at, file.expires_at, file.run_id) == (NOW, None, None)
    assert await files.fetch("a", [InputFile("p", file_id=file.id)]) == [b"hello"]


async def test_a_file_of_another_tenant_is_as_one_that_never_was(files: Files) -> None:
    file = await upload(files)
    answers = []
    for tenant, file_id in (("b", file.id), ("a", "file_none")):
        with pytest.raises(NotFound) as caught:
            await files.get(tenant, file_id)
        with pytest.raises(NotFound):
            await files.delete(tenant, file_id)
        with pytest.raises(NotFound):
            await files.get_signed(file_id, "b")
        answers.append(caught.value.message)
    assert answers[0] == answers[1]
    assert await files.get_signed(file.id, "a") == file


async def test_a_deleted_file_is_gone(files: Files) -> None:
    file = await upload(files)
    await files.delete("a", file.id)
    with pytest.raises(NotFound):
        await files.get("a", file.id)


async def test_too_large_an_upload_is_refused(files: Files) -> None:
    with pytest.raises(PayloadTooLarge, match="101 bytes; the maximum is 100"):
        await upload(files, b"x" * 101)
    await upload(files, b"x" * 100)


async def test_inputs_come_in_the_order_of_the_request(files: Files) -> None:
    file = await upload(files)
    wanted = [InputFile("1", content=b"in"), InputFile("2", file_id=file.id), InputFile("3")]
    assert await files.fetch("a", wanted) == [b"in", b"hello", b""]


async def test_an_unknown_input_names_its_field(files: Files) -> None:
    file = await upload(files, tenant="b")
    wanted = [InputFile("1", content=b""), InputFile("2", file_id=file.id)]
    with pytest.raises(InvalidRequest, match=re.escape("files[1].id")) as caught:
        await files.fetch("a", wanted)
    assert (caught.value.param, caught.value.code) == ("files[1].id", "file_not_found")


async def test_inputs_too_large_together_are_refused_before_they_are_read(files: Files) -> None:
    file = await upload(files, b"x" * 80)
    wanted = [InputFile(name, file_id=file.id) for name in "12"]
    with pytest.raises(PayloadTooLarge, match="160 bytes in all; the maximum is 150"):
        await files.fetch("a", wanted)


async def test_artifacts_expire(files: Files, records: SqliteRecords, watch: Watch) -> None:
    (file,) = await files.keep(RUN, [ArtifactFile("plots/a.png", b"png")], NOW)
    assert (file.name, file.content_type, file.purpose) == ("plots/a.png", "image/png", "artifact")
    assert (file.run_id, file.tenant) == ("run_1", "a")
    await records.save_run(replace(RUN, status=RunStatus.SUCCEEDED, artifacts=(file,)))
    watch.time = NOW + timedelta(minutes=59)
    assert await files.get("a", file.id)
    watch.time = NOW + timedelta(hours=1)
    with pytest.raises(NotFound):
        await files.get("a", file.id)
    with pytest.raises(NotFound):
        await files.get_signed(file.id, "a")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.png", "image/png"),
        ("a.CSV", "text/csv"),
        ("a.svg", "image/svg+xml"),
        ("a.html", "text/html"),
        ("a.tar.gz", "application/octet-stream"),
        ("a", "application/octet-stream"),
        ("a.txt\nx", "application/octet-stream"),
        ("data:text/html,x", "application/octet-stream"),
    ],
)
def test_the_type_is_told_by_the_name(name: str, expected: str) -> None:
    assert content_type(name) == expected


def test_ids_are_random_and_safe_in_a_url() -> None:
    ids = {new_id("run") for _ in range(1000)}
    assert len(ids) == 1000
    assert all(re.fullmatch(r"run_[A-Za-z0-9_-]{24}", each) for each in ids)


def test_found_passes_what_is_there() -> None:
    assert found(0, "run") == 0
    with pytest.raises(NotFound, match="no such run"):
        found(None, "run")
