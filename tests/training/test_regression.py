"""Methods that regress at re-noised endpoints: their targets where the answer is known, and their runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from amsd.experiment.train import train
from amsd.recipe import load_recipe
from amsd.training.groups import leave_one_out
from amsd.training.methods.eam import renoised
from amsd.training.rewards import plain_gradient
from tests import pipelines
from tests.training.by_hand import SAMPLES, trainer
from tests.training.test_closed_form import steps_of

COMMON = [
    "schedule.num_inference_steps=4", "optimizer.prompts_per_step=4", "optimizer.micro_batch=2", "training.steps=2",
    "training.checkpoint_every=1", "evaluation.every=0", "tracking.trackers=none", "method.timesteps_per_trajectory=2",
]  # fmt: skip


@pytest.mark.parametrize("strength", [1.0, 5.0, 25.0])
def test_the_mean_of_eams_target_is_the_tilted_models_prediction(strength: float) -> None:
    """Base N(0, 1) at the endpoint's level, reward -k x^2/2, lambda k = strength: endpoints N(0, 1/(1 + lambda k))."""
    steps, end, count = steps_of(20), 15, 400_000
    random = torch.Generator().manual_seed(0)
    variance = 1 / (1 + strength)
    x = variance**0.5 * torch.randn(count, 1, generator=random, dtype=torch.float64)
    score = -(1 + strength) * x
    for k in (0, 5, 10, 14):
        noise = torch.randn(count, 1, generator=random, dtype=torch.float64)
        state, target = renoised(steps, end, torch.full((count,), k), x, score, noise)
        slope = float((state * target).sum() / state.square().sum())
        ratio = float(steps.alpha[k] / steps.alpha[end])
        spread = float(steps.s[k].square() - ratio**2 * steps.s[end].square())
        assert slope == pytest.approx(float(steps.s[k]) / (ratio**2 * variance + spread), rel=0.01)


@pytest.mark.parametrize("model", ["ddim", "flow"])
def test_the_gradient_of_a_clean_image_is_carried_to_noisy_states(model: str, tmp_path: Path) -> None:
    """Through the base's prediction of the clean image, by plain differentiation, at the endpoint and below it."""
    pipeline = pipelines.stable_diffusion() if model == "ddim" else pipelines.stable_diffusion_3(t5=False)
    method = {"name": "eam", "timesteps_per_trajectory": 3, "endpoint_level": 0.99, "reward_multiplier": 7.0,
              "law": "model"}  # fmt: skip
    built = trainer(pipeline, tmp_path, method=method, guidance={"guidance_scale": 3.0 if model == "ddim" else 1.0})
    steps, end = built.problem.steps, built.end
    assert 0 < end < built.available - 1
    assert built.available == 3
    found = built.compute_experience(SAMPLES, 1, 1)
    with built.sampler.applied():
        conditioning, trajectory = built.draw(SAMPLES, 1)
    reward = plain_gradient(built.problem, trajectory.terminal, [sample.prompt for sample in SAMPLES])
    for column in range(end, built.available):  # all steps with noise are drawn, in order
        assert found.indices[:, column].tolist() == [column] * len(SAMPLES)
        state = trajectory.states[:, column].clone().requires_grad_(True)
        prediction = built.problem.base(conditioning, 1.0)(state, column)
        (slope,) = torch.autograd.grad(steps.data(prediction, column, state), state, reward.gradient)
        score = -steps.noise(prediction, column, state).detach() / float(steps.s[column]) + 7.0 * slope
        s, alpha = float(steps.s[column]), float(steps.alpha[column])
        expected = -s * score if model == "ddim" else -(state.detach() + s * score) / alpha
        torch.testing.assert_close(found.states[:, column], state.detach())
        torch.testing.assert_close(found.base_predictions[:, column], prediction.detach(), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found.targets[:, column], expected, rtol=1e-3, atol=1e-4)
        assert float((found.targets - found.base_predictions)[:, column].abs().max()) > 1e-3
    assert bool(found.targets.isfinite().all())


@pytest.mark.parametrize("place", ["clean", "endpoint"])
@pytest.mark.parametrize("model", ["ddim", "flow"])
def test_the_law_of_the_sampler_takes_the_steps_own_share_of_the_tilt(model: str, place: str, tmp_path: Path) -> None:
    found, schedule = {}, {"num_inference_steps": 4, **({"final_step": "midpoint"} if model == "ddim" else {})}
    for law in ("sampler", "model"):
        pipeline = pipelines.stable_diffusion() if model == "ddim" else pipelines.stable_diffusion_3(t5=False)
        method = {"name": "eam", "timesteps_per_trajectory": 2, "reward_multiplier": 7.0, "reward_at": place,
                  "law": law, "endpoint_level": 0.6}  # fmt: skip
        built = trainer(pipeline, tmp_path, method=method, schedule=schedule)
        found[law] = built.compute_experience(SAMPLES, 1, 1)
    sampler, model_law, steps = found["sampler"], found["model"], built.problem.steps
    share = steps.noise_share[sampler.indices].view(*sampler.indices.shape, 1, 1, 1).float()
    assert float(share.min()) < 0.95
    moved = model_law.targets - model_law.base_predictions
    torch.testing.assert_close(sampler.targets - sampler.base_predictions, share * moved, rtol=1e-3, atol=1e-5)
    assert float(moved.abs().max()) > 0.01


def test_advantages_leave_the_sample_out() -> None:
    groups = torch.tensor([0, 1, 0, 1, 0])
    found = leave_one_out(groups, torch.tensor([1.0, 5.0, 2.0, 9.0, 6.0]))
    assert found.tolist() == [-3.0, -4.0, -1.5, 4.0, 4.5]


def values(folder: Path) -> list[dict[str, Any]]:
    """Logged values of the steps of a run."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if '"loss"' in line]


@pytest.mark.parametrize("method", ["ram", "eam"])
def test_the_unchanged_policy_is_the_base(method: str, tmp_path: Path) -> None:
    """Of the first step; that a resumed run is the same run is tested for every method (`test_methods.py`)."""
    train(load_recipe("shapes", [f"method.name={method}", *COMMON]), tmp_path / "run", resume=False)
    first, second = values(tmp_path / "run")
    assert first["gradient_norm"] > 0
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert first["prediction_ratio"] == pytest.approx(1, abs=1e-6)
    assert second["kl"] > 1e-6


def test_without_a_reward_ram_stays_where_it_is(tmp_path: Path) -> None:
    train(load_recipe("shapes", ["method.name=ram", *COMMON, "method.reward_multiplier=0", "training.steps=1"]),
          tmp_path / "run", resume=False)  # fmt: skip
    assert values(tmp_path / "run")[0]["loss"] < 1e-9
    assert values(tmp_path / "run")[0]["gradient_norm"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["shapes", "flow"])
def test_without_a_reward_eam_moves_nothing_on_the_embedded_models(recipe: str, tmp_path: Path) -> None:
    """Neither the reward nor the captions change beyond chance, where the same steps with lambda = 50 gain."""
    settings = ["method.name=eam", "training.steps=12", "training.checkpoint_every=12", "training.validate_every=12",
                "evaluation.prompts=16", "evaluation.samples_per_prompt=2", "evaluation.diversity=[]",
                "tracking.trackers=none"]  # fmt: skip
    metrics, distance = {}, {}
    for multiplier in (0.0, 50.0):
        run = tmp_path / str(multiplier)
        found = train(load_recipe(recipe, [*settings, f"method.reward_multiplier={multiplier}"]), run)
        metrics[multiplier] = {name: each.paired for name, each in found.results[0].metrics.items()}
        distance[multiplier] = values(run)[-1]["validation/kl"]
        if multiplier < 1:
            assert abs(sum(step["null_drift"] for step in values(run))) / 12 < 0.02
    assert distance[0.0] < distance[50.0] / 2  # the noise of the gradients alone
    still, moved = metrics[0.0], metrics[50.0]
    for name in ("shapes:right", "shapes:alignment"):
        assert abs(still[name].difference) < max(0.02, 3 * still[name].standard_error)
    assert moved["shapes:right"].difference > 4 * moved["shapes:right"].standard_error


@pytest.mark.parametrize("place", ["clean", "endpoint"])
def test_eam_trains_on_a_flow_path(place: str, tmp_path: Path) -> None:
    settings = ["method.name=eam", *COMMON, f"method.reward_at={place}", "schedule.num_inference_steps=6"]
    train(load_recipe("flow", [*settings, "training.steps=1"]), tmp_path / "run", resume=False)
    (line,) = values(tmp_path / "run")
    assert line["gradient_norm"] > 0
    assert line["kl"] == pytest.approx(0, abs=1e-6)
    assert abs(line["null_drift"]) < 0.2  # the unchanged policy is the base, up to the sampler's error


def test_ram_asks_for_no_gradient_of_the_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from amsd.rewards.combination import WeightedReward

    judged = WeightedReward.__call__
    asked: list[bool] = []

    def watched(self: WeightedReward, images: torch.Tensor, prompts: Any) -> Any:
        asked.append(torch.is_grad_enabled() or images.requires_grad)
        return judged(self, images, prompts)

    monkeypatch.setattr(WeightedReward, "__call__", watched)
    recipe = load_recipe("shapes", ["method.name=ram", *COMMON, "training.steps=1"])
    train(recipe, tmp_path / "run", resume=False)
    assert asked
    assert not any(asked)
    prompts_seen = values(tmp_path / "run")
    assert prompts_seen[0]["reward/std"] > 0
