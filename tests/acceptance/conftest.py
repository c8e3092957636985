"""What the bare interpreters say, kept for the session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.acceptance.comparing import References
from tests.engine.rig import BASE, Engine


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory) -> References:
    """Of this host's interpreters."""
    return References(tmp_path_factory.mktemp("go-cache"))


@pytest.fixture(scope="session")
def image_references(
    engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[References]:
    """Of the interpreters that the runner images are made with."""
    with engine.tree(BASE) as tree:
        yield References(tmp_path_factory.mktemp("go-cache-of-the-image"), tree)
