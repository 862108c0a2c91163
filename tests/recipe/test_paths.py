"""Paths are found from the working directory, then from the recipe's folder, and absolute from then on."""

from __future__ import annotations

from pathlib import Path

import pytest

from amsd.experiment.start import as_written
from amsd.files import sha256
from amsd.prompts import load_prompts
from amsd.recipe import dump_toml, load_recipe
from amsd.recipe.load import read_run
from amsd.run_directory import RunDirectory


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


FILES = ("model", "weights/clip", "mine.py", "prompts.csv")
RECIPE = """
[model]
pretrained = "./model"
[prompts]
train = "prompts.csv"
[[reward]]
name = "python:mine.py:red"
options = { size = 3, file = "weights/clip", kind = "model" }
[evaluation]
metrics = ["clip-score"]
options = { "clip-score" = { model = "weights/clip" } }
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project 100%?"
    for name in FILES:
        (folder / name).mkdir(parents=True) if "." not in name else (folder / name).write_text("text\nx\n")
    (folder / "r.toml").write_bytes(b"\xef\xbb\xbf" + RECIPE.replace("\n", "\r\n").encode())
    return folder


@pytest.mark.parametrize("where", ["project 100%?", "elsewhere"])
def test_every_kind_of_path_is_found_from_every_folder(
    where: str, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / where).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / where)
    recipe = load_recipe(project / "r.toml")
    assert recipe.model.pretrained == str(project / "model")
    assert recipe.prompts.train == str(project / "prompts.csv")
    assert recipe.reward[0].name == "python:mine.py:red"
    assert recipe.code["mine.py"].path == str(project / "mine.py")
    assert recipe.reward[0].options == {"size": 3, "file": str(project / "weights" / "clip"), "kind": "model"}
    assert recipe.evaluation.options["clip-score"]["model"] == str(project / "weights" / "clip")
    assert load_recipe(project / "r.toml") == recipe


def test_a_run_that_is_moved_with_its_project_finds_everything_again(project: Path) -> None:
    run = project / "runs" / "one"
    run.mkdir(parents=True)
    written = as_written(load_recipe(project / "r.toml"), RunDirectory(run))
    assert written.code["mine.py"].sha256 == sha256(project / "mine.py")
    (run / "recipe.toml").write_text(dump_toml(written), encoding="utf-8")
    moved = project.rename(project.parent / "moved")
    for read in (load_recipe, read_run):
        found = read(moved / "runs" / "one" / "recipe.toml")
        assert found.model.pretrained == str(moved / "model")
        assert found.prompts.train == str(moved / "prompts.csv")
    checkpoint = moved / "runs" / "one" / "checkpoints" / "step-000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "recipe.toml").write_bytes((moved / "runs" / "one" / "recipe.toml").read_bytes())
    assert load_recipe(checkpoint / "recipe.toml").model.pretrained == str(moved / "model")
