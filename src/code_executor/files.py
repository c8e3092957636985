"""Files: what callers upload and what programs leave, bytes in the object store, rows in records.

An object is put before the row that names it. A crash between the two leaves an object that no
row names, which the janitor removes; never a row without its bytes.
"""

from __future__ import annotations

import asyncio
import mimetypes
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import PurePosixPath
from typing import TypeVar

from code_executor.errors import InvalidRequest, NotFound, PayloadTooLarge
from code_executor.model import MIB, ArtifactFile, InputFile, Run, StoredFile
from code_executor.ports import Clock, Objects, Records

T = TypeVar("T")

# The built-in tables: the host's own would make answers differ from host to host.
_TYPES = {k: v for table in mimetypes.MimeTypes().types_map for k, v in table.items()}


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """How long things are kept, and how large a run's files may be.

    ``None`` for a time: kept until deleted.
    """

    artifact_ttl: timedelta | None = timedelta(hours=24)
    idempotency_ttl: timedelta = timedelta(hours=24)
    max_file_bytes: int = 10 * MIB
    max_files_bytes: int = 25 * MIB


def new_id(kind: str) -> str:
    """``kind_`` and 24 random characters (144 bits) that are safe in a URL."""
    return f"{kind}_{secrets.token_urlsafe(18)}"


class Files:
    """The files of all tenants; see the module."""

    def __init__(
        self,
        records: Records,
        objects: Objects,
        clock: Clock,
        config: ServiceConfig,
        make_id: Callable[[str], str],
    ) -> None:
        self._records = records
        self._objects = objects
        self._clock = clock
        self._config = config
        self._make_id = make_id

    async def upload(
        self, tenant: str, *, name: str, content: bytes, content_type: str, purpose: str
    ) -> StoredFile:
        """Keep a file until it is deleted.

        Raises:
            PayloadTooLarge: it is over ``max_file_bytes``.
        """
        if len(content) > self._config.max_file_bytes:
            raise PayloadTooLarge(
                f"The file is {len(content)} bytes; the maximum is {self._config.max_file_bytes}.",
                param="file",
            )
        file = StoredFile(
            id=self._make_id("file"),
            tenant=tenant,
            name=name,
            size=len(content),
            sha256=await self._objects.put(content),
            content_type=content_type,
            purpose=purpose,
            created_at=self._clock.now(),
        )
        await self._records.save_file(file)
        return file

    async def get(self, tenant: str, file_id: str) -> StoredFile:
        """A file's record.

        Raises:
            NotFound: none of this tenant, or its time is over.
        """
        return self._fresh(await self._records.get_file(tenant, file_id))

    async def get_signed(self, file_id: str, tenant: str) -> StoredFile:
        """A file for the holder of a link that has verified and names ``tenant``.

        Raises:
            NotFound: it is gone.
        """
        file = await self._records.find_file(file_id)
        return self._fresh(file if file and file.tenant == tenant else None)

    async def delete(self, tenant: str, file_id: str) -> None:
        """Forget a file.

        Raises:
            NotFound: none of this tenant.
        """
        if not await self._records.delete_file(tenant, file_id):
            raise absent("file")

    async def fetch(self, tenant: str, files: Sequence[InputFile]) -> list[bytes]:
        """The bytes of a request's files, those of uploads read from the object store.

        Raises:
            InvalidRequest: an id that names no file of this tenant.
            PayloadTooLarge: they are over ``max_files_bytes`` in all.
        """
        stored = [await self._uploaded(tenant, file, at) for at, file in enumerate(files)]
        total = sum(
            len(file.content or b"") if upload is None else upload.size
            for file, upload in zip(files, stored, strict=True)
        )
        if total > self._config.max_files_bytes:
            raise PayloadTooLarge(
                f"files are {total} bytes in all; the maximum is {self._config.max_files_bytes}.",
                param="files",
            )
        return [
            (file.content or b"") if upload is None else await self._objects.get(upload.sha256)
            for file, upload in zip(files, stored, strict=True)
        ]

    async def _uploaded(self, tenant: str, file: InputFile, at: int) -> StoredFile | None:
        if file.file_id is None:
            return None
        try:
            return await self.get(tenant, file.file_id)
        except NotFound:
            raise InvalidRequest(
                f"files[{at}].id is {file.file_id!r}; there is no such file.",
                param=f"files[{at}].id",
                code="file_not_found",
            ) from None

    async def keep(
        self, run: Run, artifacts: Sequence[ArtifactFile], now: datetime
    ) -> tuple[StoredFile, ...]:
        """Put a run's artifacts; their rows are for the caller to save, with the run."""
        if not artifacts:
            return ()  # gathering nothing would still take a turn of the loop
        names = await asyncio.gather(*(self._objects.put(each.content) for each in artifacts))
        ttl = self._config.artifact_ttl
        return tuple(
            StoredFile(
                id=self._make_id("file"),
                tenant=run.tenant,
                name=artifact.name,
                size=len(artifact.content),
                sha256=sha256,
                content_type=content_type(artifact.name),
                purpose="artifact",
                created_at=now,
                expires_at=None if ttl is None else now + ttl,
                run_id=run.id,
            )
            for artifact, sha256 in zip(artifacts, names, strict=True)
        )

    def _fresh(self, file: StoredFile | None) -> StoredFile:
        if (
            file is not None
            and file.expires_at is not None
            and file.expires_at <= self._clock.now()
        ):
            file = None
        return found(file, "file")


def content_type(name: str) -> str:
    """The media type that a file's suffix suggests; its bytes are not looked at."""
    return _TYPES.get(PurePosixPath(name).suffix.lower(), "application/octet-stream")


def found(item: T | None, kind: str) -> T:
    """``item``, or :class:`NotFound` of its ``kind`` where there is none."""
    if item is None:
        raise absent(kind)
    return item


def absent(kind: str) -> NotFound:
    """The one answer for what is gone, never was, or is somebody else's."""
    return NotFound(f"There is no such {kind}.")
