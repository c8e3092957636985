from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import pytest

from code_executor.api.links import Links
from code_executor.errors import Forbidden
from code_executor.model import StoredFile
from code_executor.signing import Signer

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    now_is = NOW

    def now(self) -> datetime:
        return self.now_is

    def monotonic(self) -> float:
        return 0.0


def links(clock: Clock | None = None) -> Links:
    signer = Signer([b"k" * 32])
    return Links(signer, base_url="https://x.example/p/", ttl_s=600, clock=clock or Clock())


def file(expires_at: datetime | None = None) -> StoredFile:
    return StoredFile(
        "file_1", "acme", "a", 1, "0" * 64, "text/plain", "artifact", NOW, expires_at=expires_at
    )


def query(url: str) -> bytes:
    return urlsplit(url).query.encode()


def test_a_link_is_built_from_configuration_and_checks() -> None:
    url, expires_at = links().make(file())
    assert url.startswith("https://x.example/p/v1/files/file_1?payload=")
    assert expires_at == NOW + timedelta(seconds=600)
    assert links().check("file_1", query(url)) == "acme"


def test_a_link_does_not_outlive_its_file() -> None:
    _, expires_at = links().make(file(NOW + timedelta(seconds=5)))
    assert expires_at == NOW + timedelta(seconds=5)


def test_a_link_ends() -> None:
    clock = Clock()
    url, expires_at = links(clock).make(file())
    clock.now_is = expires_at - timedelta(seconds=1)
    assert links(clock).check("file_1", query(url)) == "acme"
    clock.now_is = expires_at
    with pytest.raises(Forbidden):
        links(clock).check("file_1", query(url))


@pytest.mark.parametrize("change", [b"&a=b", b"&sig=x", b"&payload="])
def test_nothing_may_be_added(change: bytes) -> None:
    url, _ = links().make(file())
    with pytest.raises(Forbidden):
        links().check("file_1", query(url) + change)


def test_no_parameter_may_be_repeated_even_with_its_own_value() -> None:
    url, _ = links().make(file())
    both = query(url)
    with pytest.raises(Forbidden):
        links().check("file_1", both + b"&" + both)


def test_a_link_is_for_one_file() -> None:
    url, _ = links().make(file())
    with pytest.raises(Forbidden):
        links().check("file_2", query(url))
