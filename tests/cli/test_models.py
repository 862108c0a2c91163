"""Anybody's model from the command line: evaluated beside a base, drawn with, and trained from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from amsd.cli.app import app
from amsd.errors import AmsdError
from tests import ldm, pipelines
from tests.cli.commands import write_recipe
from tests.diffusion.test_start_weights import made

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """recipe.toml on model/, another model in other/, the same as one file, a LoRA file, and a run with its export."""
    folder = tmp_path_factory.mktemp("anybody")
    write_recipe(folder)
    other = pipelines.stable_diffusion()
    other.unet = pipelines.stable_diffusion(seed=1).unet
    other.save_pretrained(folder / "other")
    made(folder / "lora")
    return folder


@pytest.fixture(autouse=True)
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def call(*arguments: str | Path) -> str:
    outcome = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert outcome.exit_code == 0, (outcome.output, outcome.exception)
    return outcome.stdout


def evaluated(*arguments: str | Path) -> dict[str, Any]:
    """The only setting of `amsd eval --json`."""
    [found] = json.loads(call("eval", *arguments, "--json").splitlines()[0]).values()
    return dict(found)


def test_a_folder_is_paired_with_the_recipes_model_and_its_results_have_a_place(place: Path) -> None:
    base = evaluated("base", "--recipe", "recipe.toml")
    found = evaluated("other", "--recipe", "recipe.toml")
    metric = found["metrics"]["brightness"]
    gaps = np.subtract(metric["per_prompt"], base["metrics"]["brightness"]["per_prompt"])
    assert metric["paired"]["difference"] == pytest.approx(gaps.mean())
    assert abs(gaps).min() > 0
    (folder,) = place.glob("evaluations/other-*")
    assert len(list((folder / "evaluation").glob("*.json"))) == 1
    assert len(list((folder / "evaluation" / "base").glob("*.json"))) == 1
    assert (folder / "comparison.png").is_file()
    # The same weights under the same conditions have the same noise, whatever stands for the model.
    assert evaluated("model", "--recipe", "recipe.toml")["metrics"]["brightness"]["paired"]["difference"] == 0
    alone = evaluated("other", "--recipe", "recipe.toml", "--base", "none", "--output", "elsewhere")
    assert alone["metrics"]["brightness"]["paired"] is None
    assert alone["metrics"]["brightness"]["per_prompt"] == metric["per_prompt"]
    assert len(list(Path("elsewhere/evaluation").glob("*.json"))) == 1
    reverse = evaluated("model", "--recipe", "recipe.toml", "--base", "other")
    assert reverse["metrics"]["brightness"]["paired"]["difference"] == pytest.approx(-gaps.mean())


def test_a_lora_file_and_a_single_file_are_models_too(place: Path) -> None:
    lora = evaluated("lora/pytorch_lora_weights.safetensors", "--recipe", "recipe.toml")
    assert lora["metrics"]["brightness"]["paired"]["difference"] != 0
    merged = pipelines.stable_diffusion()
    merged.load_lora_weights("lora")
    merged.fuse_lora()
    merged.unload_lora_weights()
    merged.save_pretrained("merged")
    as_folder = evaluated("merged", "--recipe", "recipe.toml")
    values = [each["metrics"]["brightness"]["per_prompt"] for each in (lora, as_folder)]
    np.testing.assert_allclose(*values, atol=1e-4)
    save_file(ldm.checkpoint(pipelines.stable_diffusion()), "one.safetensors")
    single = evaluated("one.safetensors", "--recipe", "recipe.toml")
    assert single["metrics"]["brightness"]["paired"]["difference"] == pytest.approx(0, abs=1e-6)


def test_an_export_carries_its_recipe_and_a_run_can_have_another_base(place: Path) -> None:
    call("train", "recipe.toml", "--output", "run", "--set", "training.steps=2")
    call("export", "run", "--to", "out")
    exported, run = evaluated("out"), evaluated("run")
    for each in (exported, run):
        assert each["metrics"]["brightness"]["paired"]["difference"] != 0
    np.testing.assert_allclose(
        exported["metrics"]["brightness"]["per_prompt"], run["metrics"]["brightness"]["per_prompt"], atol=2e-3
    )
    against = evaluated("run", "--base", "other")
    assert against["key"] != run["key"]
    assert against["metrics"]["brightness"]["per_prompt"] == run["metrics"]["brightness"]["per_prompt"]
    files = list(place.glob("run/checkpoints/step-000002/evaluation/*.json"))
    assert len(files) == 2
    assert "step-000002" in call("eval", "run")  # the step it takes is named


def test_training_begins_from_each_and_the_base_stays(place: Path) -> None:
    short = ("--set", "training.steps=1", "--set", "training.checkpoint_every=1")
    tiny = ("--set", "optimizer.learning_rate=1e-9")  # so that the checkpoint is what it began from
    call("train", "recipe.toml", "--output", "from-folder", *short, *tiny, "--set", "model.start=other")
    weights = load_file("from-folder/checkpoints/step-000001/unet/diffusion_pytorch_model.safetensors")
    wanted = load_file("other/unet/diffusion_pytorch_model.safetensors")
    assert all((weights[name] - value).abs().max() < 1e-6 for name, value in wanted.items())
    [base] = place.glob("from-folder/evaluation/base/*.json")
    recipes_own = evaluated("base", "--recipe", "recipe.toml")["metrics"]["brightness"]["per_prompt"]
    assert json.loads(base.read_text())["metrics"]["brightness"]["per_prompt"] == recipes_own
    call("train", "recipe.toml", "--output", "from-run", *short, *tiny, "--set", "model.start=from-folder")
    again = load_file("from-run/checkpoints/step-000001/unet/diffusion_pytorch_model.safetensors")
    assert all((again[name] - value).abs().max() < 1e-6 for name, value in wanted.items())
    lora = ("--set", "model.parameterization=lora", "--set", "model.lora.rank=4", "--set", "model.lora.alpha=2")
    call("train", "recipe.toml", "--output", "from-lora", *short, *tiny, *lora, "--set", "model.start=lora")
    own = load_file("from-lora/checkpoints/step-000001/adapter_model.safetensors")
    file = load_file("lora/pytorch_lora_weights.safetensors")
    assert all((own[name] - value).abs().max() < 1e-6 for name, value in file.items())
    call("train", "recipe.toml", "--output", "from-lora", "--resume", *tiny, *lora, "--set", "model.start=lora",
         "--set", "training.checkpoint_every=1", "--set", "training.steps=2")  # fmt: skip


def pixels(file: str) -> np.ndarray:
    return np.asarray(Image.open(file)).astype(int)


def test_pictures_come_from_any_model(place: Path) -> None:
    draw = ("-p", "a cat", "--steps", "4")
    call("sample", "lora", *draw, "--base", "model", "--output", "a")
    call("sample", "merged", *draw, "--out", "b")
    call("sample", "model", *draw, "-o", "c")
    lora, merged, base = (pixels(f"{name}/p000-s0.png") for name in "abc")
    assert abs(lora - merged).max() <= 1
    assert abs(lora - base).max() > 3


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "no recipe": (("eval", "other"), "a model without a recipe"),
    "no such thing": (("eval", "nothing", "--recipe", "recipe.toml"), "no such run, checkpoint, folder or file"),
    "no such path": (("eval", "./a/b", "--recipe", "recipe.toml"), "no such run, checkpoint, folder or file"),
    "lora alone": (("sample", "lora", "-p", "x", "-o", "d"), "name the model that it is added to"),
    "no start": (("train", "recipe.toml", "-o", "e", "--set", "model.start=./none"), "model.start"),
    "wrong rank": (
        ("train", "recipe.toml", "-o", "f", "--set", "model.start=lora", "--set", "model.parameterization=lora"),
        "Set model.lora.rank = 4",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_way_out(place: Path, case: str) -> None:
    arguments, text = REFUSED[case]
    outcome = CliRunner().invoke(app, arguments)
    assert isinstance(outcome.exception, AmsdError), outcome.output
    assert outcome.exception.exit_code == 2
    assert text in str(outcome.exception)
    assert not Path("e").exists()


def test_models_whose_pictures_differ_in_size_are_not_paired(place: Path) -> None:
    few = ("evaluation.prompts=1", "evaluation.samples_per_prompt=1", "evaluation.diversity=[]")
    arguments = ["eval", "other", "--recipe", "shapes", *(word for each in few for word in ("--set", each))]
    error = CliRunner().invoke(app, arguments).exception
    assert isinstance(error, AmsdError)
    assert error.exit_code == 2
    assert "other draws pictures of 16 x 16 pixels and the other model of 32 x 32" in str(error)
