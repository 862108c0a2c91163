"""The trainers themselves, on accelerate and from fit to checkpoint, reach the fixed point that is known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from amsd.diffusion.parameterizations import build_policy
from amsd.files import write_text
from amsd.recipe import dump_toml, from_dict
from amsd.run_directory import RunDirectory
from amsd.training.methods import trainer_of
from amsd.training.problem import ControlProblem
from tests.training.gaussian import GaussianFamily, GaussianNetwork, quadratic
from tests.training.listening import Values
from tests.training.test_closed_form import CENTER, Affine, fixed_point, steps_of, uncontrolled

STEPS, MULTIPLIER = 10, 2.0
BUFFER = {"name": "buffer-am", "buffer": {"size": 256, "passes": 2}}


def fitted(method: dict[str, Any], multiplier: float, folder: Path) -> tuple[Affine, list[Mapping[str, float]]]:
    """The controls that `fit` ends with, as its checkpoint holds them, and what was logged of its steps."""
    updates, batch = 150, 128
    recipe = from_dict(
        {
            "schedule": {"num_inference_steps": STEPS},
            "guidance": {"guidance_scale": 1.0},
            "method": {
                "reward_multiplier": multiplier,
                "timesteps_per_trajectory": STEPS - 1 if method["name"] == "am" else 4,
                "per_sample_threshold_quantile": -1.0,
                **method,
            },
            "reward": [{"name": "brightness"}],
            "optimizer": {
                "learning_rate": 0.05, "betas": [0.9, 0.999], "schedule": "cosine", "weight_decay": 0.0,
                "warmup_steps": 0, "gradient_clip": 0.0, "prompts_per_step": batch, "micro_batch": batch,
            },
            "training": {"steps": updates, "checkpoint_every": updates},
            "evaluation": {"every": 0},
        }
    )  # fmt: skip
    family, accelerator = GaussianFamily(STEPS), Accelerator(cpu=True)
    policy, steps = build_policy(family, recipe.model), steps_of(STEPS)
    problem = ControlProblem(recipe, family, policy, steps, quadratic, accelerator.device)
    run = RunDirectory(folder / "run")
    write_text(run.recipe, dump_toml(recipe))
    trainer = trainer_of(recipe.method)(problem, run, ["anything"], accelerator, [values := Values()])
    trainer.fit()
    assert trainer.step == updates

    found = GaussianNetwork.from_pretrained(run.checkpoint(updates) / "unet").controls()
    assert torch.equal(found.w, family.pipeline.unet.controls().w)
    return found, values.of_steps


WEIGHED = {"name": "am", "step_weights": "prediction"}


@pytest.mark.parametrize("method", [{"name": "am"}, BUFFER, WEIGHED], ids=["on policy", "buffer", "weighed by step"])
def test_the_trainer_reaches_the_fixed_point(method: dict[str, Any], tmp_path: Path) -> None:
    found, _ = fitted(method, MULTIPLIER, tmp_path)
    steps = steps_of(STEPS)
    before, _ = uncontrolled(steps).terminal(steps)
    expected = fixed_point(steps, MULTIPLIER).terminal(steps)
    mean, spread = found.terminal(steps)
    assert (mean - before) / (expected[0] - before) == pytest.approx(1, abs=0.01)
    assert spread / expected[1] == pytest.approx(1, abs=0.01)


def test_the_predicted_shift_is_the_shift_of_the_reward(tmp_path: Path) -> None:
    """For a small lambda, where first order is enough; at the fixed point it is 2 KL / lambda too."""
    multiplier = 0.02
    found, values = fitted({"name": "am"}, multiplier, tmp_path)
    steps = steps_of(STEPS)
    base, tuned = (
        -1.5 * (spread**2 + (mean - CENTER) ** 2)
        for mean, spread in (uncontrolled(steps).terminal(steps), found.terminal(steps))
    )
    predicted, kl = (sum(step[key] for step in values[-30:]) / 30 for key in ("predicted_shift", "kl"))
    assert predicted == pytest.approx(tuned - base, rel=0.05)
    assert predicted == pytest.approx(2 * kl / multiplier, rel=0.05)
