"""Two rewards at once: each term has its own curve, and normalized terms are divided by their spread on the base."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from amsd.experiment.train import train
from amsd.recipe import from_dict
from tests import pipelines

STEPS = 20


def combination(model: Path, normalize: bool) -> Any:
    return from_dict(
        {
            "model": {"pretrained": str(model)},
            "schedule": {"num_inference_steps": 6},
            "guidance": {"guidance_scale": 1.0},
            "method": {"timesteps_per_trajectory": 3, "reward_multiplier": 20.0 if normalize else 1000.0},
            "reward": [
                {"name": "brightness", "weight": 1.0, "normalize": normalize},
                {"name": "colorfulness", "weight": 0.5, "normalize": normalize},
            ],
            "prompts": {"train": ["a red circle", "a cat"], "evaluation": ["a tree"]},
            "optimizer": {"learning_rate": 3e-4, "prompts_per_step": 8, "micro_batch": 8, "warmup_steps": 0},
            "training": {"steps": STEPS, "checkpoint_every": STEPS},
            "evaluation": {"samples_per_prompt": 16, "batch_size": 16, "eta": [1.0]},
            "tracking": {"mode": "disabled"},
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize("normalize", [False, True])
def test_every_term_of_a_combination_has_its_curve(normalize: bool, tmp_path: Path) -> None:
    pipelines.stable_diffusion().save_pretrained(tmp_path / "model")
    finished = train(combination(tmp_path / "model", normalize), tmp_path / "run", resume=False)
    text = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [line for line in map(json.loads, text.splitlines()) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    curves = {name: [line[f"reward/{name}"] for line in lines] for name in ("mean", "brightness", "colorfulness")}
    assert all(math.isfinite(value) for curve in curves.values() for value in curve)
    sums = list(zip(*curves.values(), strict=True))
    if normalize:
        # mean = brightness / s_b + 0.5 colorfulness / s_c with the same two scales at every step.
        (m0, b0, c0), (m1, b1, c1) = sums[0], sums[-1]
        determinant = b0 * c1 - b1 * c0
        factors = (m0 * c1 - m1 * c0) / determinant, (b0 * m1 - b1 * m0) / determinant
        assert factors[0] > 1
        assert factors[1] > 0.5
    else:
        factors = 1.0, 0.5
    for total, brightness, colorfulness in sums:
        assert total == pytest.approx(factors[0] * brightness + factors[1] * colorfulness, rel=1e-3)
    gains = [finished.results[0].metrics[name].paired for name in ("brightness", "colorfulness")]
    assert sum(factor * gain.difference for factor, gain in zip(factors, gains, strict=True) if gain) > 0
