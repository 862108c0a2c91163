"""The embedded flow model as it ships: small, loaded by plain diffusers and by amsd, and as good as its gates say."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from amsd.diffusion.loading import load_family
from amsd.errors import UsageError
from amsd.experiment.train import train
from amsd.recipe import Model, load_recipe
from amsd.shapes import MODELS, pipeline_path, prompts_path
from amsd.shapes.rewards import color_accuracy, form_accuracy
from embedded.flow_quality import AT_LEAST, AT_MOST, generate_flow, load_flow
from embedded.quality import Quality

FOLDER = pipeline_path("shapes-flow")


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return load_flow(FOLDER)


def test_weights_are_small_and_complete() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8e6
    assert {"model_index.json", "training.json", "samples.png"} <= {path.name for path in files}
    assert not any(path.suffix in (".bin", ".pt", ".ckpt") for path in files), "no pickle"


def test_stored_gates_are_met() -> None:
    record = json.loads((FOLDER / "training.json").read_text())
    assert Quality(record["quality"]["measured"], AT_LEAST, AT_MOST).failures() == []
    assert {"settings", "libraries", "log"} <= record.keys()
    assert record["settings"]["shift"] == 3.0


def test_plain_diffusers_draws_the_captions_with_any_number_of_zero_tokens(pipeline: Any) -> None:
    """Diffusers puts 256 zero vectors in the place of T5's text; amsd's recipe leaves them out."""
    prompts = prompts_path("evaluation").read_text().splitlines()
    images = generate_flow(pipeline, prompts, seed=11, steps=10)
    assert images.shape == (16, 3, 32, 32)
    assert float(color_accuracy()(images, prompts).mean()) >= 0.85
    assert float(form_accuracy()(images, prompts).mean()) >= 0.8
    padded = generate_flow(pipeline, prompts[:4], seed=11, steps=4, zero_tokens=256)
    plain = generate_flow(pipeline, prompts[:4], seed=11, steps=4)
    assert float((padded - plain).abs().mean()) < 0.03


def test_a_recipe_names_it_and_an_unknown_name_is_told_what_there_is() -> None:
    family = load_family(Model(pretrained="embedded:shapes-flow", max_sequence_length=0))
    assert family.latent_shape == (4, 8, 8)
    assert family.encode(["a small red circle"]).hidden_states.shape == (1, 8, 96)
    with pytest.raises(UsageError, match="embedded:shapes-flow"):
        load_family(Model(pretrained="embedded:squares"))
    assert set(MODELS) == {"shapes", "shapes-flow"}


def test_files_hold_half_precision(pipeline: Any) -> None:
    for parameter in pipeline.transformer.parameters():
        assert torch.equal(parameter, parameter.half().float())


@pytest.mark.slow
def test_the_recipe_raises_the_reward_on_held_out_prompts(tmp_path: Any) -> None:
    """A paired gain of at least 5 standard errors."""
    finished = train(load_recipe("flow", ["tracking.mode=disabled"]), tmp_path / "run", resume=False)
    (result,) = finished.results
    paired = result.metrics["shapes:right"].paired
    assert paired is not None
    assert paired.standard_error is not None
    assert paired.difference > 5 * paired.standard_error
