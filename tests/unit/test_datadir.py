"""The data directory: private, held by one service, with the key of signed links."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from code_executor.datadir import DataDirectory
from code_executor.errors import HostUnfit


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_made_for_its_owner_only(tmp_path: Path) -> None:
    DataDirectory(tmp_path / "a" / "data")
    assert mode(tmp_path / "a" / "data") == 0o700


def test_what_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostUnfit, match="cannot be made") as caught:
        DataDirectory(tmp_path / "file" / "data")
    assert "DATA_DIR" in caught.value.fix


def test_one_service_at_a_time(tmp_path: Path) -> None:
    with DataDirectory(tmp_path).locked():
        other = DataDirectory(tmp_path)
        with pytest.raises(HostUnfit, match="Another service"), other.locked():
            pytest.fail("two held it")
    with DataDirectory(tmp_path).locked():
        pass


def test_the_signing_key_is_made_once_and_kept_private(tmp_path: Path) -> None:
    keys = DataDirectory(tmp_path).signing_keys()
    assert len(keys) == 1
    assert len(keys[0]) == 64
    assert DataDirectory(tmp_path).signing_keys() == keys
    assert mode(tmp_path / "signing.key") == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["signing.key"]


@pytest.mark.parametrize("bits", [0o640, 0o604])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, bits: int) -> None:
    DataDirectory(tmp_path).signing_keys()
    (tmp_path / "signing.key").chmod(bits)
    with pytest.raises(HostUnfit, match="by others"):
        DataDirectory(tmp_path).signing_keys()


def test_each_directory_has_its_own_key(tmp_path: Path) -> None:
    first = DataDirectory(tmp_path / "1").signing_keys()
    assert DataDirectory(tmp_path / "2").signing_keys() != first


@pytest.mark.parametrize("text", ["", "short"])
def test_a_damaged_key_is_refused_and_not_replaced(tmp_path: Path, text: str) -> None:
    (tmp_path / "signing.key").write_text(text)
    (tmp_path / "signing.key").chmod(0o600)
    with pytest.raises(HostUnfit, match="signing key") as caught:
        DataDirectory(tmp_path).signing_keys()
    assert "SIGNING_KEY" in caught.value.fix
    assert (tmp_path / "signing.key").read_text() == text
