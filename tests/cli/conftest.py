from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli import commands


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe for a tiny model, both on disk."""
    return commands.write_recipe(tmp_path_factory.mktemp("tiny"))
