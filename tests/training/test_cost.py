"""The cost model against what the UNet of the embedded model is really asked for in training steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from diffusers import UNet2DConditionModel

from amsd.experiment.train import train
from amsd.recipe import from_dict, load_recipe
from amsd.recipe.catalog import folder
from amsd.recipe.cost import training_cost
from amsd.recipe.load import read_toml

PROMPTS = 2
CHUNKS = {"prompts_per_step": PROMPTS, "micro_batch": 1, "warmup_steps": 1}
FULL = {"guidance_in_adjoint_computation": True, "guidance_in_control_computation": True}
GUIDED = {"guidance_scale": 5.0, **FULL}
BUFFER: dict[str, Any] = {
    "name": "buffer-am",
    "timesteps_per_trajectory": 2,
    "buffer": {"size": 2 * PROMPTS, "passes": 2},
}
DDPO: dict[str, Any] = {"name": "ddpo", "timesteps_per_trajectory": 3, "buffer": {"passes": 2}}


class Counter:
    """Images that went through any UNet, forward and backward; a backward pass to the input alone costs one forward,
    one to the parameters as well two."""

    forward = 0
    backward = 0


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter]:
    counter, original = Counter(), UNet2DConditionModel.forward

    def forward(self: UNet2DConditionModel, sample: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, sample, *args, **kwargs)
        if sample.device.type == "meta":  # a count of operations computes nothing
            return output
        result = output[0] if isinstance(output, tuple) else output.sample
        counter.forward += len(sample)
        if result.requires_grad:
            trained = any(parameter.requires_grad for parameter in self.parameters())

            def note(_: Any) -> None:
                counter.backward += len(sample) * (2 if trained else 1)

            result.register_hook(note)
        return output

    with monkeypatch.context() as patch:
        patch.setattr(UNet2DConditionModel, "forward", forward)
        yield counter


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"guidance": {"guidance_scale": 5.0}},
        {"guidance": {"guidance_scale": 5.0, **FULL}},
        {"guidance": {"guidance_scale": 5.0, "guidance_in_adjoint_computation": True}},
        {"guidance": {"guidance_scale": 5.0, "guidance_in_control_computation": True}},
        {"method": {"name": "am", "timesteps_per_trajectory": 4, "adjoint_at": "current"}},
        {"optimizer": CHUNKS},
        {"optimizer": CHUNKS, "method": {"name": "am", "outlier_threshold": "previous"}},
        {"method": {"name": "ram", "timesteps_per_trajectory": 2}, "guidance": {"guidance_scale": 5.0}},
        {"method": {"name": "eam", "timesteps_per_trajectory": 4}, "guidance": {"guidance_scale": 5.0}},
        {"method": {"name": "eam", "timesteps_per_trajectory": 2, "reward_at": "endpoint"}},
        {"method": {"name": "draft"}, "guidance": {"guidance_scale": 5.0}},
        {"method": {"name": "draft", "backpropagated_steps": "all"}},
        {"method": {"name": "refl", "late_share": 0.25}, "guidance": {"guidance_scale": 5.0}},
        {"method": DDPO, "guidance": {"guidance_scale": 5.0}},
        {"method": {**DDPO, "kl_weight": 0.1}},
        {"method": BUFFER},
        {"method": {**BUFFER, "buffer": {**BUFFER["buffer"], "min_ess": 0.1}}},
        {"method": {**BUFFER, "buffer": {**BUFFER["buffer"], "min_ess": 0.1}}, "guidance": {"guidance_scale": 5.0}},
        {"method": {**BUFFER, "buffer": {**BUFFER["buffer"], "min_ess": 0.1}}, "guidance": GUIDED},
        {"optimizer": CHUNKS, "method": {**BUFFER, "outlier_threshold": "previous",
                                         "buffer": {**BUFFER["buffer"], "importance_weighting": True}}},
        {"method": BUFFER, "guidance": {"guidance_scale": 5.0, **FULL}},
        {"model": {"pretrained": "embedded:shapes", "parameterization": "lora"}},
    ],
    ids=["unguided", "CFG trajectories", "full CFG", "adjoint only", "control only", "current", "chunks", "one pass",
         "ram", "eam", "eam, endpoint", "draft", "draft, all steps", "refl", "ddpo", "ddpo with KL", "buffer", "ESS",
         "ESS, CFG trajectories", "ESS, full CFG", "weighted", "full CFG buffer", "lora"],
)  # fmt: skip
def test_real_steps_cost_what_the_model_says(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four steps, all of them loss steps (over all passes of a buffer), so that the smallest index is certain."""
    tree = {
        **read_toml(folder("recipes") / "shapes.toml"),
        "schedule": {"num_inference_steps": 4, "final_step": "midpoint"},
        "method": {"name": "am", "timesteps_per_trajectory": 4, "reward_multiplier": 5.0},
        "optimizer": {"prompts_per_step": PROMPTS, "micro_batch": PROMPTS, "warmup_steps": 1},
        "training": {"steps": 4, "checkpoint_every": 4},
        "evaluation": {"every": 0},
        "tracking": {"mode": "disabled"},
        **changes,
    }
    recipe = from_dict(tree)
    with counted(monkeypatch) as counter:
        train(recipe, tmp_path / "run", resume=False)
    assert counter.forward + counter.backward == training_cost(recipe)


def test_random_indices_cost_what_the_model_expects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = read_toml(folder("recipes") / "shapes.toml")
    tree["training"] = {"steps": 2, "checkpoint_every": 2}
    tree["evaluation"] = {"every": 0}
    tree["tracking"] = {"mode": "disabled"}
    recipe = from_dict(tree)
    with counted(monkeypatch) as counter:
        train(recipe, tmp_path / "run", resume=False)
    # 32 trajectories; the smallest of 2 out of 6 has a standard deviation of 1.25 and costs two each.
    error = 2 * 1.25 * 32**0.5
    assert abs(counter.forward + counter.backward - training_cost(recipe)) < 4 * error


def test_refl_samples_each_trajectory_only_as_far_as_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps 6 to 9 of 10, each drawn with probability 1/4: a standard deviation of 1.12 per trajectory."""
    settings = [
        "method.name=refl", "method.late_share=0.4", "training.steps=2", "evaluation.every=0", "tracking.trackers=none",
    ]  # fmt: skip
    recipe = load_recipe("shapes", settings)
    with counted(monkeypatch) as counter:
        train(recipe, tmp_path / "run", resume=False)
    assert training_cost(recipe) == 32 * (7.5 + 3)
    assert abs(counter.forward + counter.backward - training_cost(recipe)) < 4 * 1.12 * 32**0.5


@pytest.mark.parametrize(
    ("method", "prompts", "steps", "at_most"),
    [
        ({"name": "am"}, 12, 1, 198.0),
        ({"name": "buffer-am", "buffer": {"size": 2, "passes": 10}}, 2, 10, 32.0),
    ],
    ids=["on-policy", "buffer"],
)
def test_no_call_is_unneeded(
    method: dict[str, Any], prompts: int, steps: int, at_most: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """N = 50, guidance 7.5, K = 4, several micro-batches, counted by hooks; the reference needs 212.0 and 32.0."""
    recipe = from_dict(
        {
            **read_toml(folder("recipes") / "shapes.toml"),
            "schedule": {"num_inference_steps": 50, "final_step": "midpoint"},
            "guidance": {"guidance_scale": 7.5},
            "method": {"timesteps_per_trajectory": 4, "outlier_threshold": "previous", **method},
            "optimizer": {"prompts_per_step": prompts, "micro_batch": prompts // 2},
            "training": {"steps": steps, "checkpoint_every": steps},
            "evaluation": {"every": 0},
            "tracking": {"mode": "disabled"},
        }
    )
    with counted(monkeypatch) as counter:
        train(recipe, tmp_path / "run", resume=False)
    trajectories = prompts * steps
    assert (counter.forward + counter.backward) / trajectories <= at_most
    assert training_cost(recipe) / trajectories <= at_most
    assert counter.forward + counter.backward == pytest.approx(training_cost(recipe), rel=0.04)
