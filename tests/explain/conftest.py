"""One planted world for all tests of explanations."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.explain.worlds import World, world


@pytest.fixture(scope="session")
def planted_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return world(tmp_path_factory.mktemp("explain"))


@pytest.fixture
def run(planted_world: World, tmp_path: Path) -> Path:
    """A copy of the run; its cache is the one of the world."""
    return Path(shutil.copytree(planted_world.run.path, tmp_path / "runs" / "planted"))
