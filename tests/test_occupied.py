"""New outputs do not begin inside what belongs to a run, a sweep or an export already."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from amsd.cli.app import app
from amsd.errors import UsageError
from amsd.experiment.train import train
from amsd.occupied import require_lasting, require_place
from amsd.recipe import load_recipe

INSIDE = {
    "run/checkpoints/step-000001": "is the checkpoint",
    "run/checkpoints/step-000001/new": "lies in the checkpoint",
    "run/new": "lies in the run",
    "run/checkpoints": "lies in the run",
    "study": "is the sweep",
    "study/new": "lies in the sweep",
    "pipeline": "is the exported pipeline",
    "pipeline/unet/new": "lies in the exported pipeline",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run, a sweep and an exported pipeline in it; its own recipe.toml is a user's."""
    for file in (
        "recipe.toml", "run/recipe.toml", "run/metrics.jsonl", "run/checkpoints/step-000001/manifest.json",
        "study/sweep.json", "study/plan.json", "pipeline/recipe.toml", "pipeline/model_index.json",
    ):  # fmt: skip
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("place", INSIDE)
def test_a_training_does_not_begin_inside_something_else(here: Path, place: str) -> None:
    before = sorted(here.rglob("*"))
    for resume in ([], ["--resume"]):
        refused = CliRunner().invoke(app, ["train", "shapes", "-o", place, *resume]).exception
        assert isinstance(refused, UsageError)
        assert str(refused).startswith(f"--output {place}: {INSIDE[place]} {here / place.split('/')[0]}")
        assert "Choose a folder outside of it" in str(refused)
        with pytest.raises(UsageError, match=f"^output {place}: {INSIDE[place]} "):
            train(load_recipe("shapes"), place, resume=bool(resume))
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("place", [*INSIDE, "run"])
def test_a_sweep_does_not_begin_inside_something_else(here: Path, place: str) -> None:
    if place == "study":  # that one goes on
        require_place(here / place, "--output", "sweep")
        return
    refused = CliRunner().invoke(app, ["sweep", "run", "shapes-smoke", "-o", place]).exception
    assert isinstance(refused, UsageError)
    assert str(refused).startswith(f"--output {place}: {INSIDE.get(place, 'is the run')} ")


COMMANDS = {
    "sample": ["sample", "base", "-p", "a cat", "-o", "{place}/pictures"],
    "export": ["export", "run", "-o", "{place}/pipeline"],
    "eval": ["eval", "base", "-o", "{place}/results"],
    "eval --table": ["eval", "base", "--table", "{place}/table"],
    "report": ["report", "run", "-o", "{place}/page.html"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("here")
def test_results_are_not_written_where_training_deletes_them(command: str) -> None:
    place = "run/checkpoints/step-000001"
    words = [word.replace("{place}", place) for word in COMMANDS[command]]
    refused = CliRunner().invoke(app, words).exception
    assert isinstance(refused, UsageError)
    assert f"{place}/" in str(refused)
    assert "lies in the checkpoint " in str(refused)


def test_other_places_are_free(here: Path) -> None:
    (here / "linked").symlink_to(here / "run" / "checkpoints")
    for place in ("new", "runs/new", "run"):  # the last one goes on
        require_place(here / place, "--output", "run")
    require_place(here / "study" / "trials" / "0" / "run", "--output", "run", within_sweep=True)
    for place in ("run/pictures", "study/best", "pipeline/pictures", "checkpoints/step-1"):
        require_lasting(here / place, "--output")
    with pytest.raises(UsageError, match="lies in the checkpoint "):
        require_lasting(here / "linked" / "step-000001" / "x", "--output")
