"""Signed links to files: made for answers, checked for downloads."""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import parse_qsl

from code_executor.errors import Forbidden
from code_executor.model import StoredFile
from code_executor.ports import Clock
from code_executor.signing import Link, Signer


class Links:
    """Builds links from configuration, never from a request's headers."""

    def __init__(self, signer: Signer, *, base_url: str, ttl_s: int, clock: Clock) -> None:
        self._signer = signer
        self._base_url = base_url.rstrip("/")
        self._ttl_s = ttl_s
        self._clock = clock

    def make(self, file: StoredFile) -> tuple[str, datetime]:
        """A link to ``file`` and when it expires: in ``ttl_s``, or with the file if sooner."""
        expires = int(self._clock.now().timestamp()) + self._ttl_s
        if file.expires_at is not None:
            expires = min(expires, int(file.expires_at.timestamp()))
        path = f"/v1/files/{file.id}"
        payload, sig = self._signer.sign(Link(path, file.tenant, expires))
        url = f"{self._base_url}{path}?payload={payload}&sig={sig}"
        return url, datetime.fromtimestamp(expires, UTC)

    def check(self, file_id: str, query_string: bytes) -> str:
        """The tenant whose file ``file_id`` the query gives access to.

        Raises:
            Forbidden: a bad, expired, foreign or incomplete link, or a parameter twice.
        """
        pairs = parse_qsl(query_string.decode("latin-1"), keep_blank_values=True)
        query = dict(pairs)
        if len(pairs) != 2 or set(query) != {"payload", "sig"}:
            raise Forbidden("The link is not valid or has expired.")
        now = self._clock.now().timestamp()
        link = self._signer.verify(
            query["payload"], query["sig"], method="GET", path=f"/v1/files/{file_id}", now=now
        )
        return link.tenant
