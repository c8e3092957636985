"""One index of the host's Go for all tests: it takes half a minute to make.

The one that ``scripts/setup.sh`` has made is copied where it is of this state of the sources.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.conftest import runtime_dir

from code_executor.languages.goindex import INSIDE, GoIndexError, build, find_go


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("go") / "index"
    if (runtime_dir() / "go").is_dir():
        _copy(runtime_dir() / "go", directory)
    try:
        build(directory, find_go(), inside=str(directory))
    except GoIndexError as exc:
        pytest.skip(str(exc))
    return directory


def _copy(made: Path, directory: Path) -> None:
    """An index seen at its place: its tables, and what it says it was made from, name that."""
    shutil.copytree(made, directory, symlinks=True)
    for name in ("compile.cfg", "link.cfg", "version"):
        text = (directory / name).read_text()
        (directory / name).write_text(text.replace(INSIDE, str(directory)))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"
