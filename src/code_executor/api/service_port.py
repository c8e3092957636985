"""What the HTTP edge asks of the core. ``code_executor.service.Service`` is one of these."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from code_executor.model import (
    LanguageStatus,
    Principal,
    Promise,
    Run,
    RunRequest,
    RunStatus,
    StoredFile,
)


class Readiness(Protocol):
    """Whether programs can be run now; ``reason`` says why not."""

    @property
    def ok(self) -> bool: ...
    @property
    def reason(self) -> str | None: ...
    @property
    def promises(self) -> Sequence[Promise]: ...
    @property
    def backend(self) -> str: ...


class ServicePort(Protocol):
    """The use cases. Each raises the errors of :mod:`code_executor.errors` and no others.

    A run or file of another tenant is :class:`~code_executor.errors.NotFound`, as if absent.
    """

    async def run(
        self, principal: Principal, request: RunRequest, *, idempotency: tuple[str, str] | None
    ) -> Run:
        """Run to the end. ``idempotency``: the client's key and the body's fingerprint."""
        ...

    async def get_run(self, principal: Principal, run_id: str) -> Run: ...

    async def list_runs(
        self,
        principal: Principal,
        *,
        limit: int,
        after: str | None,
        status: RunStatus | None,
        language: str | None,
    ) -> tuple[Sequence[Run], bool]: ...

    async def delete_run(self, principal: Principal, run_id: str) -> None: ...

    async def cancel_run(self, principal: Principal, run_id: str) -> Run: ...

    async def upload(
        self, principal: Principal, *, name: str, content: bytes, content_type: str, purpose: str
    ) -> StoredFile: ...

    async def get_file(self, principal: Principal, file_id: str) -> StoredFile: ...

    async def list_files(
        self, principal: Principal, *, limit: int, after: str | None, purpose: str | None
    ) -> tuple[Sequence[StoredFile], bool]: ...

    async def delete_file(self, principal: Principal, file_id: str) -> None: ...

    def content(self, file: StoredFile) -> AsyncIterator[bytes]: ...

    async def signed_file(self, file_id: str, tenant: str) -> StoredFile: ...

    async def languages(self) -> Sequence[LanguageStatus]: ...

    async def ready(self) -> Readiness: ...
