"""Prompt files are found from the working directory, then from the recipe's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from amsd.prompts import load_prompts
from amsd.recipe import load_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    folder = tmp_path / "experiments"
    folder.mkdir()
    (folder / "prompts.txt").write_text("beside the recipe\n", encoding="utf-8")
    text = '[prompts]\ntrain = "prompts.txt"\nevaluation = "absent.txt"\n[[reward]]\nname = "brightness"\n'
    (folder / "mine.toml").write_text(text, encoding="utf-8")
    return folder / "mine.toml"


def test_a_file_beside_the_recipe_is_found(recipe: Path) -> None:
    prompts = load_recipe(recipe).prompts
    assert load_prompts(prompts.train).texts == ("beside the recipe",)
    assert prompts.evaluation == "absent.txt"


def test_the_working_directory_comes_first(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prompts.txt").write_text("here\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_prompts(load_recipe(recipe).prompts.train).texts == ("here",)


def test_an_assignment_means_the_working_directory(recipe: Path) -> None:
    assert load_recipe(recipe, ["prompts.train=prompts.txt"]).prompts.train == "prompts.txt"
