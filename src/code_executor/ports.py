"""The protocols between the layers. *Raises* is part of each: both sides are held to it.

Nothing here does anything (:class:`Haste` passes a word on). The core (``pool``, ``worker``,
``janitor``, ``service``) is written against these; adapters (``sandbox``, ``store``, ``objects``)
implement them; ``compose`` joins.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from code_executor.model import (
    LanguageStatus,
    Outcome,
    Plan,
    Promise,
    Run,
    RunStatus,
    StoredFile,
)


class Sandbox(Protocol):
    """One prepared, single-use, isolated place, given out once and destroyed after."""

    @property
    def flavour(self) -> str:
        """The flavour it was prepared as (``Plan.flavour``)."""
        ...

    def alive(self) -> bool:
        """Whether it can still take a run; asked just before it is given out."""
        ...

    def memory_bytes(self) -> int:
        """What it has taken of the host's memory so far; 0 where nobody counts it."""
        ...

    async def run(self, plan: Plan) -> Outcome:
        """Execute ``plan`` and return how it ended; at most one call in a sandbox's life.

        Returns within the plan's ``timeout_ms`` plus one second plus staging,
        whatever the program does. Cancelling the awaiting task ends the program.

        Raises:
            SandboxUnavailable: the machinery failed; nothing is known of the program.
        """
        ...

    def destroy(self) -> Awaitable[None]:
        """Begin to leave nothing: no process, mount, cgroup or directory; what is returned is done
        when that is so. Idempotent; never raises.
        """
        ...


class Haste:
    """Whether somebody waits for what is being prepared; from some moment on somebody may.

    ``spare``: nobody does, and it is one more than there have to be.
    """

    def __init__(self, *, needed: bool = True, spare: bool = False) -> None:
        self.needed = needed
        self.spare = spare
        self._told: Callable[[], None] | None = None

    def on_need(self, told: Callable[[], None]) -> None:
        """Whom to tell, once, when it becomes needed; the latest counts."""
        self._told = told

    def need(self) -> None:
        """Somebody waits for it now."""
        if not self.needed:
            self.needed = True
            if self._told is not None:
                self._told()


class Backend(Protocol):
    """A way to start sandboxes. A handful of verbs, and no policy."""

    @property
    def name(self) -> str:
        """``native``, ``gvisor``, ``docker`` or ``fake``."""
        ...

    async def start(self) -> None:
        """Make the host ready: sweep what a crash left, start helpers.

        Raises:
            HostUnfit: a promise cannot be kept here; says what to do.
        """
        ...

    async def probe(self) -> Sequence[Promise]:
        """Look at the host and run the hostile probes in a real sandbox; one row a promise."""
        ...

    async def prepare(self, flavour: str, haste: Haste | None = None) -> Sandbox:
        """Prepare one sandbox of ``flavour``, ready to run.

        While ``haste`` says that nobody needs it yet, a backend that can has the preparation
        yield to runs; ``None``: it is needed.

        Raises:
            SandboxUnavailable: it could not be made; nothing of it is left.
        """
        ...

    async def languages(self) -> Sequence[LanguageStatus]:
        """What each known language is on this backend, versions included; cached."""
        ...

    async def close(self) -> None:
        """End the helpers and remove everything made; never raises."""
        ...


class Records(Protocol):
    """The durable memory: runs and files. A method has returned = it is committed.

    Every read takes the tenant; a record of another tenant is ``None``, as if absent.

    Raises (all): ``SandboxUnavailable`` is never raised here; an engine failure is the
    adapter's own exception and becomes a 500 at the edge.
    """

    async def start(self) -> None:
        """Open the database and bring the schema to the current version."""
        ...

    async def close(self) -> None: ...

    async def save_run(self, run: Run, *, idempotency: tuple[str, str] | None = None) -> None:
        """Insert or replace a run together with its artifacts' file rows, in one transaction.

        ``idempotency`` is the tenant's key and the SHA-256 of the request body, claimed for
        this run in the same transaction.

        Raises:
            Conflict: another run holds a claim on the key that is still valid; nothing was saved.
        """
        ...

    async def find_idempotent(
        self, tenant: str, key: str, *, since: datetime
    ) -> tuple[str, str] | None:
        """The body's SHA-256 and the run id of a claim made at ``since`` or later."""
        ...

    async def expire_idempotency(self, before: datetime, *, limit: int) -> int:
        """Forget up to ``limit`` claims made before ``before``; how many."""
        ...

    async def get_run(self, tenant: str, run_id: str) -> Run | None: ...

    async def list_runs(
        self,
        tenant: str,
        *,
        limit: int,
        after: str | None = None,
        status: RunStatus | None = None,
        language: str | None = None,
    ) -> tuple[Sequence[Run], bool]:
        """Newest first; the flag says whether more follow.

        A page may hold fewer than ``limit`` runs although more follow, when their output is large.

        Raises:
            InvalidRequest: ``after`` names no run of this tenant.
        """
        ...

    async def delete_run(self, tenant: str, run_id: str) -> bool:
        """Forget a run and its artifacts' rows; whether there was one."""
        ...

    async def expire_runs(self, before: datetime, *, limit: int) -> int:
        """Forget up to ``limit`` finished runs created before ``before``; how many."""
        ...

    async def save_file(self, file: StoredFile) -> None:
        """Insert or replace a file row. Its object was put just before (see ``janitor``)."""
        ...

    async def get_file(self, tenant: str, file_id: str) -> StoredFile | None: ...

    async def find_file(self, file_id: str) -> StoredFile | None:
        """A file by id alone, for a signed link that has verified already."""
        ...

    async def list_files(
        self, tenant: str, *, limit: int, after: str | None = None, purpose: str | None = None
    ) -> tuple[Sequence[StoredFile], bool]:
        """Newest first; the flag says whether more follow.

        Raises:
            InvalidRequest: ``after`` names no file of this tenant.
        """
        ...

    async def delete_file(self, tenant: str, file_id: str) -> bool: ...

    async def expire_files(self, now: datetime, *, limit: int) -> int:
        """Delete up to ``limit`` file rows whose time is over; how many."""
        ...

    async def unfinished_runs(self) -> Sequence[Run]:
        """Runs still queued or running: at start, the ones a crash interrupted."""
        ...

    async def referenced(self, sha256s: Sequence[str]) -> set[str]:
        """Of the given object names, those that some file row still points to."""
        ...


class Objects(Protocol):
    """Bytes by SHA-256. Writing the same bytes twice is one object."""

    async def put(self, content: bytes) -> str:
        """Store and return the SHA-256, lower-case hex; durable on return.

        Putting what is there already makes it young again for ``delete`` and ``list``.
        """
        ...

    async def get(self, sha256: str) -> bytes:
        """All of it.

        Raises:
            NotFound: no such object.
        """
        ...

    def stream(self, sha256: str) -> AsyncIterator[bytes]:
        """In pieces, for a download.

        Raises:
            NotFound: no such object (on the first piece).
        """
        ...

    async def delete(self, sha256: str, *, older_than: datetime | None = None) -> None:
        """Remove it, unless it was written at ``older_than`` or later; no error when absent."""
        ...

    def list(self, *, older_than: datetime) -> AsyncIterator[str]:
        """Names of the objects last written before ``older_than``."""
        ...


class Clock(Protocol):
    """Time as a parameter."""

    def now(self) -> datetime:
        """Wall time, timezone-aware UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back."""
        ...


class Metrics(Protocol):
    """What the core reports; the Prometheus side lives in ``observe``."""

    def run_finished(self, run: Run) -> None: ...

    def pool_level(self, levels: Mapping[str, int]) -> None: ...
