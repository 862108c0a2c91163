"""Whole trainings of a tiny pipeline: resume, equal results at any micro-batch, exports, errors."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from amsd.errors import RunError, UsageError
from amsd.experiment.export import export
from amsd.experiment.sample import SampleRequest, sample
from amsd.experiment.train import train
from amsd.recipe import Recipe, from_dict
from amsd.run_directory import RunDirectory, damage
from amsd.tracking.jsonl import JsonlTracker
from amsd.training.checkpoint import weights_sha256

TIMES = ("seconds/", "share/", "collection/", "performance/", "time")


def recipe(folder: Path, /, **changes: dict[str, Any]) -> Recipe:
    tree: dict[str, Any] = {
        "model": {"pretrained": str(folder)},
        "schedule": {"num_inference_steps": 4},
        "guidance": {"guidance_scale": 3.0},
        "method": {"timesteps_per_trajectory": 2, "reward_multiplier": 100.0},
        "reward": [{"name": "brightness"}],
        "prompts": {"train": ["a red circle", "a cat", "a big dog"], "evaluation": ["a blue square", "a tree"]},
        "optimizer": {"learning_rate": 1e-3, "prompts_per_step": 4, "micro_batch": 4, "warmup_steps": 1},
        "training": {"steps": 4, "checkpoint_every": 2, "keep": 5},
        "evaluation": {"samples_per_prompt": 2, "diversity": ["pixels"]},
        "tracking": {"mode": "disabled"},
    }
    for section, values in changes.items():
        tree[section] = tree.get(section, {}) | values
    return from_dict(tree)


BUFFER = {"method": {"name": "buffer-am", "timesteps_per_trajectory": 1, "buffer": {"size": 8, "passes": 2}}}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "full with average": {"training": {"steps": 4, "checkpoint_every": 2, "keep": 5, "ema_decay": 0.9}},
    "lora with dropout": {"model": {"parameterization": "lora"}, "prompts": {"dropout": 0.5}},
    "offset with smoothing": {
        "model": {"parameterization": "offset"},
        "method": {"timesteps_per_trajectory": 2, "smoothing": {"samples": 2, "noise_std": 0.1, "clip_quantile": 0.5}},
    },
    "full guidance": {
        "guidance": {"guidance_in_adjoint_computation": True, "guidance_in_control_computation": True},
        "schedule": {"num_inference_steps": 4, "final_step": "midpoint"},
    },
    "buffer, stopped in the middle of a pass": {
        **BUFFER,
        "training": {"steps": 6, "checkpoint_every": 3, "keep": 5},
    },
}


def merged(folder: Path, changes: dict[str, dict[str, Any]]) -> Recipe:
    base = recipe(folder).model_dump(mode="json", exclude_none=True)
    return recipe(folder, **{section: base[section] | values for section, values in changes.items()})


def pixels(picture: Any) -> Any:
    image = Image.open(picture) if isinstance(picture, Path) else picture
    return np.asarray(image).astype(int)


def lines(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(TIMES)} for line in found]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_is_bit_identical_to_one_that_was_never_interrupted(
    model: Path, tmp_path: Path, variant: str
) -> None:
    chosen = merged(model, VARIANTS[variant])
    train(chosen, tmp_path / "whole", resume=False)
    interrupted = tmp_path / "interrupted"
    shutil.copytree(tmp_path / "whole", interrupted)
    # as if killed while the last checkpoint was written: it is absent, its parts lie aside, later lines are logged
    run = RunDirectory(interrupted)
    last = run.checkpoint(chosen.training.steps)
    last.rename(run.checkpoints / f".{last.name}.123.tmp")
    train(chosen, interrupted, resume=True)
    assert lines(interrupted) == lines(tmp_path / "whole")
    assert not list(run.checkpoints.glob(".*"))
    for file in sorted(last.rglob("*.safetensors")):
        whole = RunDirectory(tmp_path / "whole").checkpoint(chosen.training.steps) / file.relative_to(last)
        ours, theirs = load_file(file), load_file(whole)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), file.name
    assert weights_sha256(last) == weights_sha256(RunDirectory(tmp_path / "whole").checkpoint(chosen.training.steps))


def test_a_clock_that_goes_backwards_changes_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = merged(model, {"training": {"steps": 4, "checkpoint_every": 2}})
    train(chosen, tmp_path / "straight", resume=False)
    hours = itertools.count()
    monkeypatch.setattr(time, "time", lambda: 2e9 - 3600.0 * next(hours))
    monkeypatch.setattr(JsonlTracker.__init__, "__defaults__", (time.time,))
    train(chosen, tmp_path / "back", resume=False)
    assert lines(tmp_path / "back") == lines(tmp_path / "straight")
    logged = [json.loads(line) for line in (tmp_path / "back" / "metrics.jsonl").read_text().splitlines()]
    spent = [value for line in logged for key, value in line.items() if key.startswith(TIMES) and key != "time"]
    assert spent
    assert min(spent) >= 0
    assert logged[0]["time"] > logged[-1]["time"]  # it did go backwards
    assert not re.search(r"-\d+:|-\d+(\.\d+)? ?(s|min|h)\b", capsys.readouterr().out)


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = recipe(model)
    train(chosen, tmp_path / "run", resume=False)
    before = lines(tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    weights = run.checkpoint(4) / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    train(chosen, tmp_path / "run", resume=True)
    said = "step-000004 is damaged: unet/diffusion_pytorch_model.safetensors does not match"
    assert caplog.text.count(said) == 1  # every file of a checkpoint is read once
    assert lines(tmp_path / "run") == before
    assert damage(run.checkpoint(4)) is None


def test_no_whole_checkpoint_is_an_error_not_a_fresh_start(model: Path, tmp_path: Path) -> None:
    chosen = recipe(model, training={"steps": 2, "checkpoint_every": 2})
    train(chosen, tmp_path / "run", resume=False)
    (RunDirectory(tmp_path / "run").checkpoint(2) / "manifest.json").unlink()
    with pytest.raises(RunError, match=r"step-000002 is damaged: manifest\.json is missing"):
        train(chosen, tmp_path / "run", resume=True)


@pytest.mark.parametrize("rule", ["current", "previous"])
def test_micro_batch_changes_speed_not_results(model: Path, tmp_path: Path, rule: str) -> None:
    """Also with a quantile mask that needs the whole batch before its first gradient."""
    results = []
    for size in (4, 2, 1):
        settings = {"learning_rate": 1e-3, "prompts_per_step": 4, "micro_batch": size, "warmup_steps": 1}
        chosen = recipe(
            model, optimizer=settings, evaluation={"every": 0}, training={"steps": 3, "checkpoint_every": 3},
            method={"outlier_threshold": rule},
        )  # fmt: skip
        train(chosen, tmp_path / str(size), resume=False)
        results.append([line for line in lines(tmp_path / str(size)) if "loss" in line])
    for other in results[1:]:
        for line, reference in zip(other, results[0], strict=True):
            assert line.keys() == reference.keys()
            for key, value in reference.items():
                assert line[key] == pytest.approx(value, rel=2e-3, abs=2e-4), key
    # A threshold of the batches before knows nothing in the first one.
    assert (results[0][0]["masked_share"] == 0) == (rule == "previous")


@pytest.mark.parametrize("parameterization", ["full", "lora", "offset"])
def test_gradient_checkpointing_changes_memory_not_results(model: Path, tmp_path: Path, parameterization: str) -> None:
    """For LoRA the recomputed forward pass of the base must have its adapters off too."""
    curves = []
    for checkpointing in (False, True):
        chosen = recipe(
            model, model={"pretrained": str(model), "parameterization": parameterization}, evaluation={"every": 0},
            training={
                "steps": 3, "checkpoint_every": 3, "gradient_checkpointing": checkpointing, "collection_batch": 4,
            },
        )  # fmt: skip
        train(chosen, tmp_path / str(checkpointing), resume=False)
        curves.append([line for line in lines(tmp_path / str(checkpointing)) if "loss" in line])
    for plain, checkpointed in zip(*curves, strict=True):
        for key in ("loss", "adjoint_norm/first", "gradient_norm", "control_norm"):
            assert checkpointed[key] == pytest.approx(plain[key], rel=1e-4, abs=1e-7), key


@pytest.mark.parametrize("parameterization", ["full", "lora"])
def test_plain_diffusers_draws_the_same_image_from_an_export(
    model: Path, tmp_path: Path, parameterization: str
) -> None:
    from diffusers import StableDiffusionPipeline

    settings = {"pretrained": str(model), "parameterization": parameterization}
    if parameterization == "lora":
        settings |= {"lora": {"rank": 4, "alpha": 64.0}}
    chosen = recipe(
        model, model=settings, evaluation={"every": 0}, training={"steps": 2, "checkpoint_every": 2},
        optimizer={"learning_rate": 1e-2, "prompts_per_step": 4, "micro_batch": 4, "warmup_steps": 0},
    )  # fmt: skip
    train(chosen, tmp_path / "run", resume=False)
    checkpoint = RunDirectory(tmp_path / "run").checkpoint(2)
    request = SampleRequest(("a big dog",), count=2, seed=7, eta=0.0, guidance_scale=4.0, num_inference_steps=5)
    pictures = [
        np.asarray(Image.open(path)).astype(int) for path in sample(chosen, checkpoint, request, tmp_path / "s")
    ]
    base = [np.asarray(Image.open(path)).astype(int) for path in sample(chosen, None, request, tmp_path / "base")]
    assert max(abs(a - b).max() for a, b in zip(pictures, base, strict=True)) > 3

    def drawn(pipeline: StableDiffusionPipeline) -> list[Any]:
        generators = [torch.Generator().manual_seed(7 + j) for j in range(2)]
        images = pipeline(
            "a big dog", num_images_per_prompt=2, num_inference_steps=5, guidance_scale=4.0, generator=generators
        ).images
        return [pixels(image) for image in images]

    exported = export(chosen, checkpoint, tmp_path / "export")
    for ours, theirs in zip(pictures, drawn(StableDiffusionPipeline.from_pretrained(exported)), strict=True):
        assert abs(ours - theirs).max() <= 1  # merging rounds the last bit
    if parameterization == "lora":
        plain = StableDiffusionPipeline.from_pretrained(model)
        plain.scheduler = StableDiffusionPipeline.from_pretrained(exported).scheduler
        plain.load_lora_weights(exported, weight_name="pytorch_lora_weights.safetensors")
        for ours, theirs in zip(pictures, drawn(plain), strict=True):
            assert abs(ours - theirs).max() <= 1
        kohya = export(chosen, checkpoint, tmp_path / "kohya", "kohya")
        plain.unload_lora_weights()
        plain.load_lora_weights(kohya, weight_name="kohya.safetensors")
        for ours, theirs in zip(pictures, drawn(plain), strict=True):
            assert abs(ours - theirs).max() <= 1


def test_an_offset_cannot_be_exported_and_says_so(model: Path, tmp_path: Path) -> None:
    settings = {"pretrained": str(model), "parameterization": "offset"}
    chosen = recipe(model, model=settings, evaluation={"every": 0}, training={"steps": 1, "checkpoint_every": 1})
    train(chosen, tmp_path / "run", resume=False)
    with pytest.raises(UsageError, match="offset"):
        export(chosen, RunDirectory(tmp_path / "run").checkpoint(1), tmp_path / "export")
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("wrong", [{"metrics": ["brightnes"]}, {"diversity": ["pixel"]}])
def test_an_unknown_scorer_is_refused_before_anything_is_written(
    model: Path, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="Did you mean"):
        train(recipe(model, evaluation=wrong), tmp_path / "run", resume=False)
    assert not (tmp_path / "run").exists()


def test_a_used_folder_needs_resume_and_the_same_recipe(model: Path, tmp_path: Path) -> None:
    chosen = recipe(model, evaluation={"every": 0}, training={"steps": 1, "checkpoint_every": 1})
    train(chosen, tmp_path / "run", resume=False)
    with pytest.raises(UsageError, match="resume=True"):
        train(chosen, tmp_path / "run", resume=False)
    other = recipe(model, schedule={"num_inference_steps": 5}, evaluation={"every": 0})
    with pytest.raises(UsageError, match=r"another recipe \(.*: .* -> .*\)"):
        train(other, tmp_path / "run", resume=True)
    longer = recipe(model, evaluation={"every": 0}, training={"steps": 2, "checkpoint_every": 1})
    train(longer, tmp_path / "run", resume=True)
    assert [line["step"] for line in lines(tmp_path / "run") if "loss" in line] == [1, 2]


@pytest.mark.parametrize("role", ["train", "evaluation"])
def test_edited_prompts_are_not_resumed(model: Path, tmp_path: Path, role: str) -> None:
    """The same file with other texts is another run, also where the recipe still names it."""
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\na dog\n", encoding="utf-8")
    short = {"evaluation": {"every": 0}, "training": {"steps": 1, "checkpoint_every": 1}}
    chosen = recipe(model, prompts={role: str(file)}, **short)
    train(chosen, tmp_path / "run", resume=False)
    file.write_text("a cat\na dog\na cow\n", encoding="utf-8")
    with pytest.raises(UsageError, match=rf"the {role}.*prompts\.txt differ from.*2 prompts.*now 3.*another output"):
        train(chosen, tmp_path / "run", resume=True)
    file.write_text("  a cat\n\na dog\n", encoding="utf-8")
    train(chosen, tmp_path / "run", resume=True)


def nan_for_cats(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    scores = images.mean((1, 2, 3))
    return torch.stack([s * float("nan") if "cat" in p else s for s, p in zip(scores, prompts, strict=True)])


def fails_on_cats(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return images.mean((1, 2, 3)) * {"a dog": 1.0}[prompts[0]]


def test_a_reward_that_cannot_work_says_so_before_the_first_step(model: Path, tmp_path: Path) -> None:
    tree = recipe(model).model_dump(mode="json", exclude_none=True)
    tree["reward"] = [{"name": "python:tests.experiment.test_train:fails_on_cats"}]
    with pytest.raises(RunError, match=r"reward 'python:tests.*:fails_on_cats' raised KeyError: .*line \d"):
        train(from_dict(tree), tmp_path / "run", resume=False)
    assert not (tmp_path / "run").exists()  # nothing was created


def test_a_reward_that_is_not_finite_stops_the_run_with_step_phase_and_prompt(model: Path, tmp_path: Path) -> None:
    tree = recipe(model, evaluation={"every": 0}).model_dump(mode="json", exclude_none=True)
    tree["reward"] = [{"name": "python:tests.experiment.test_train:nan_for_cats"}]
    with pytest.raises(RunError, match=r"Step 1: the reward 'python:.*:nan_for_cats' is nan for 1 of 4 .*'a cat'"):
        train(from_dict(tree), tmp_path / "run", resume=False)
    assert not RunDirectory(tmp_path / "run").steps()
