"""The trainers themselves, on accelerate and from fit to checkpoint, reach the fixed point that is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from amsd.diffusion.parameterizations import build_policy
from amsd.files import write_text
from amsd.recipe import dump_toml, from_dict
from amsd.run_directory import RunDirectory
from amsd.training.adjoint_matching import TRAINERS
from amsd.training.problem import ControlProblem
from tests.training.gaussian import GaussianAdapter, GaussianNetwork, quadratic
from tests.training.test_closed_form import fixed_point, steps_of, uncontrolled

STEPS, MULTIPLIER = 10, 2.0
BUFFER = {"name": "buffer-am", "buffer": {"size": 256, "passes": 2}}


@pytest.mark.parametrize("method", [{"name": "am"}, BUFFER], ids=["on policy", "buffer"])
def test_the_trainer_reaches_the_fixed_point(method: dict[str, Any], tmp_path: Path) -> None:
    updates, batch = 150, 128
    recipe = from_dict(
        {
            "schedule": {"num_inference_steps": STEPS},
            "guidance": {"guidance_scale": 1.0},
            "method": {
                "reward_multiplier": MULTIPLIER,
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
    adapter, accelerator = GaussianAdapter(STEPS), Accelerator(cpu=True)
    policy, steps = build_policy(adapter, recipe.model), steps_of(STEPS)
    problem = ControlProblem(recipe, adapter, policy, steps, quadratic, accelerator.device)
    run = RunDirectory(tmp_path / "run")
    write_text(run.recipe, dump_toml(recipe))
    trainer = TRAINERS[recipe.method.name](problem, run, ["anything"], accelerator)
    trainer.fit()
    assert trainer.step == updates

    found = GaussianNetwork.from_pretrained(run.checkpoint(updates) / "unet").controls()
    assert torch.equal(found.w, adapter.pipeline.unet.controls().w)
    before, _ = uncontrolled(steps).terminal(steps)
    expected = fixed_point(steps, MULTIPLIER).terminal(steps)
    mean, spread = found.terminal(steps)
    assert (mean - before) / (expected[0] - before) == pytest.approx(1, abs=0.01)
    assert spread / expected[1] == pytest.approx(1, abs=0.01)
