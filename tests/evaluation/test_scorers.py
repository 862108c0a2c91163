"""Scorers of an evaluation: built with the recipe's options, on the originals' 8-bit path, sharing trained weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from amsd.evaluation.evaluator import Evaluator
from amsd.evaluation.metrics import dequantize
from amsd.rewards.clip_score import CLIPScore
from amsd.rewards.eight_bit import as_original
from amsd.rewards.embedders import CLIPEmbedder
from amsd.rewards.simple import Brightness
from tests.evaluation.scenes import PROMPTS, recipe
from tests.pipelines import stable_diffusion
from tests.rewards import tiny


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.clip_folder(tmp_path_factory.mktemp("clip"))


def test_options_reach_metrics_and_embedders_and_scores_are_those_of_files_on_disk(clip: Path, tmp_path: Path) -> None:
    options = {"clip-score": {"model": str(clip)}, "clip": {"model": str(clip)}}
    chosen = recipe({"metrics": ["clip-score"], "diversity": ["clip"], "options": options, "images": 3})
    (result,) = Evaluator.for_recipe(chosen, PROMPTS, cache=tmp_path).evaluate(stable_diffusion(), "w")
    assert result.pictures is not None
    images = dequantize(result.pictures)
    original = CLIPScore(str(clip), eight_bit=True)
    expected = [original(images[p], [PROMPTS[p]] * 3).mean().item() for p in range(3)]
    assert result.metrics["clip-score"].per_prompt == pytest.approx(expected, abs=1e-6)
    embedder = CLIPEmbedder(str(clip))
    spread = [embedder(images[p]).double().var(dim=0, correction=1).sum().item() for p in range(3)]
    assert result.metrics["diversity/clip"].per_prompt == pytest.approx(spread, abs=1e-6)


def test_a_trained_scorer_is_not_loaded_twice(clip: Path, monkeypatch: Any, tmp_path: Path) -> None:
    trained = CLIPScore(str(clip))
    monkeypatch.setattr("amsd.evaluation.evaluator.resolve_reward", lambda name, options: pytest.fail(name))
    tree = recipe().model_dump(mode="json", exclude_none=True)
    tree["reward"] = [{"name": "clip-score", "options": {"model": str(clip)}}]
    from amsd.recipe import from_dict

    (result,) = Evaluator.for_recipe(from_dict(tree), PROMPTS, [trained], cache=tmp_path).evaluate(
        stable_diffusion(), "w"
    )
    assert result.metrics["clip-score"].version == CLIPScore(str(clip), eight_bit=True).version != trained.version


def test_the_8_bit_view_leaves_the_trained_scorer_as_it_was(clip: Path) -> None:
    trained = CLIPScore(str(clip))
    view = as_original(trained)
    images = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    exact = CLIPScore(str(clip), eight_bit=True)(images, PROMPTS[:2])
    assert torch.equal(view(images, PROMPTS[:2]), exact)
    assert not torch.equal(trained(images, PROMPTS[:2]), exact)
    assert trained(images.requires_grad_(), PROMPTS[:2]).requires_grad
    assert as_original(view).version == view.version


def test_a_scorer_without_the_path_is_itself() -> None:
    reward = Brightness()
    assert as_original(reward) is reward
