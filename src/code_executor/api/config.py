"""What the HTTP edge needs to know, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from code_executor.model import DEFAULT_LIMITS, MAXIMUM_LIMITS, MIB, Limits


@dataclass(frozen=True, slots=True)
class EdgeConfig:
    """Plain arguments of :func:`code_executor.api.create_app`.

    ``public_base_url``: where clients reach the service, without a final slash; links are
    built from it and never from a request's headers. ``max_buffered_bytes`` bounds the
    request bodies in memory at one moment, over all requests.
    """

    public_base_url: str = "http://127.0.0.1:8080"
    cors_origins: tuple[str, ...] = ("*",)
    link_ttl_s: int = 600
    defaults: Limits = DEFAULT_LIMITS
    maxima: Limits = MAXIMUM_LIMITS
    max_code_bytes: int = 200 * 1024
    max_file_bytes: int = 10 * MIB
    max_files_bytes: int = 25 * MIB
    max_body_bytes: int = 48 * MIB
    max_buffered_bytes: int = 256 * MIB
    body_timeout_s: float = 30.0
