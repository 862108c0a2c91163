"""Quick validation: fixed noise, the policy as the only thing that changes."""

from pathlib import Path

import pytest

from amsd.experiment.train import train
from tests import pipelines
from tests.experiment.test_train import lines, recipe


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
    still, moving = curves
    assert still == pytest.approx([still[0]] * 3, abs=1e-6)
    assert abs(moving[-1] - moving[0]) > 1e-4
