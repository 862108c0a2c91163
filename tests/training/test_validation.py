"""Quick validation: fixed noise, the policy as the only thing that changes."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from amsd.diffusion.parameterizations import build_policy
from amsd.diffusion.rollout import rollout
from amsd.experiment.train import train
from amsd.recipe import Recipe, RewardTerm
from amsd.recipe.schema import Guidance
from amsd.training.problem import ControlProblem
from amsd.training.validation import base_distance
from tests import pipelines
from tests.experiment.test_train import lines, recipe
from tests.training.gaussian import GaussianFamily, quadratic
from tests.training.test_closed_form import steps_of


def test_validation_is_logged_and_moves_with_the_policy_only(tmp_path: Path) -> None:
    pipelines.stable_diffusion(scheduler=pipelines.ddim()).save_pretrained(tmp_path / "model")
    rates = {"prompts_per_step": 4, "micro_batch": 4, "warmup_steps": 0}
    curves = []
    for rate in (1e-12, 1e-2):
        chosen = recipe(
            tmp_path / "model", evaluation={"every": 0}, optimizer={"learning_rate": rate, **rates},
            training={"steps": 3, "checkpoint_every": 3, "validate_every": 1},
        )  # fmt: skip
        train(chosen, tmp_path / str(rate), resume=False)
        curves.append([line["validation/reward"] for line in lines(tmp_path / str(rate)) if "loss" in line])
        assert all("validation/brightness" in line for line in lines(tmp_path / str(rate)) if "loss" in line)
        distances = [line["validation/kl"] for line in lines(tmp_path / str(rate)) if "loss" in line]
        assert distances == pytest.approx([0] * 3, abs=1e-6) if rate < 1e-6 else distances[-1] > 0.01
    still, moving = curves
    assert still == pytest.approx([still[0]] * 3, abs=1e-6)
    assert abs(moving[-1] - moving[0]) > 1e-4


def test_the_distance_to_the_base_against_its_closed_form() -> None:
    """A constant control b at each of nine noisy steps, in three dimensions: KL = 9 * 3 * b^2 / 2."""
    family, steps, accelerator = GaussianFamily(10), steps_of(10), Accelerator(cpu=True)
    chosen = Recipe(reward=(RewardTerm(name="brightness"),), guidance=Guidance(guidance_scale=1.0))
    policy = build_policy(family, chosen.model)
    problem = ControlProblem(chosen, family, policy, steps, quadratic, accelerator.device)
    conditioning = problem.encode(["a"] * 8)
    noise = torch.randn(8, 11, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    for b in (0.0, 0.3):
        with torch.no_grad():
            policy.trainable["b"].fill_(b)
        found = base_distance(problem, conditioning, rollout(problem.finetuned(conditioning, 1.0), steps, noise))
        assert found["kl"].tolist() == pytest.approx([9 * 3 * b**2 / 2] * 8, rel=1e-4)
        assert (found["prediction_ratio"] - 1).abs().max() > 0.01 or b == 0
