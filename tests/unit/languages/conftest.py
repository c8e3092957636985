"""One index of the host's Go, made once: it takes half a minute."""

from __future__ import annotations

from pathlib import Path

import pytest

from code_executor.languages.goindex import GoIndexError, build, find_go


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("go") / "index"
    try:
        build(directory, find_go(), inside=str(directory))
    except GoIndexError as exc:
        pytest.skip(str(exc))
    return directory


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"
