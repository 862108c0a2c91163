from __future__ import annotations

from pathlib import Path

import pytest

from amsd.report.story import Story, run_story
from amsd.report.sweep_story import story_of
from tests.report.synthetic import append, recipe, write_run, write_sweep

ALARM = {"step": 40, "notice": "reward-hacking", "text": "the trained reward rose while shapes:alignment fell <b>"}


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("report") / "run & <script>", recipe())
    append(folder, ALARM)
    return folder


@pytest.fixture(scope="session")
def a_run(run_folder: Path) -> Story:
    return run_story(run_folder)


@pytest.fixture(scope="session")
def a_sweep(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return story_of(write_sweep(tmp_path_factory.mktemp("report") / "cfg-modes", seeds=(0, 1)))
