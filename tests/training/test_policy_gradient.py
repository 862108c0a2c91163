"""DDPO: densities against torch's normal distribution, its first gradient against REINFORCE, and what is clipped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from amsd.errors import UsageError
from amsd.recipe import load_recipe
from amsd.rewards.combination import RewardValues
from amsd.training.groups import scaled_advantages
from amsd.training.methods.ddpo import clipped_loss
from tests import pipelines
from tests.training.by_hand import SAMPLES, gradient, left_over_right, perturb, trainer

ROWS = torch.arange(len(SAMPLES))
METHOD = {"name": "ddpo", "timesteps_per_trajectory": 3, "group_size": 2, "buffer": {"passes": 1}}


def densities(trainer: object, experience: object) -> Tensor:
    """log p(x_{k+1} | x_k) of the three noisy steps of every trajectory under the policy as it is, (B, 3)."""
    problem = trainer.problem  # type: ignore[attr-defined]
    steps, states, noises = problem.steps, experience.states, experience.noises  # type: ignore[attr-defined]
    predict = problem.finetuned(experience.conditioning, trainer.recipe.guidance.guidance_scale)  # type: ignore[attr-defined]
    found = []
    for k in range(3):
        x, sigma = states[:, k].double(), float(steps.sigma[k])
        sampled = steps.mean(k, x, experience.predictions[:, k].double()) + sigma * noises[:, k].double()  # type: ignore[attr-defined]
        mean = steps.mean(k, x, predict(states[:, k], k).double())
        found.append(Normal(mean, sigma).log_prob(sampled).flatten(1).sum(1))
    return torch.stack(found, 1)


@pytest.mark.parametrize("model", ["ddim", "flow"])
def test_densities_ratio_and_gradient(model: str, tmp_path: Path) -> None:
    """With every noisy step in the loss: -A grad sum log p, averaged over steps, and ratios as torch has them."""
    pipeline = pipelines.stable_diffusion() if model == "ddim" else pipelines.stable_diffusion_3(t5=False)
    built = trainer(pipeline, tmp_path, guidance={"guidance_scale": 3.0 if model == "ddim" else 1.0}, method=METHOD)
    experience = built.complete(built.compute_experience(SAMPLES, 1, 1))
    assert experience.groups.tolist() == [0, 0, 1, 1]
    first = built.losses(experience, ROWS, 0)
    assert float(first.logged["log_ratio"].abs().max()) < 1e-3  # rounding: other rows in one call
    advantages = experience.advantages
    assert advantages.abs().tolist() == pytest.approx([1.0] * 4)  # two samples: one standard deviation up, one down
    before = densities(built, experience)
    known = gradient(built, -(advantages[:, None] * before).sum())
    found = gradient(built, first.loss.sum())
    assert float(known.norm()) > 1e-3
    torch.testing.assert_close(found, known, rtol=1e-2, atol=2e-3 * float(known.abs().max()))

    perturb(built, 2e-4)
    after = densities(built, experience)
    second = built.losses(experience, ROWS, 0)
    expected = (after - before).flatten().detach().float()
    assert float(expected.abs().max()) > 0.01
    torch.testing.assert_close(second.logged["log_ratio"], expected, rtol=0.01, atol=2e-3)


def test_outside_of_the_clip_range_there_is_no_gradient_that_leads_further() -> None:
    log_ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1]).log().requires_grad_(True)
    advantages = torch.tensor([2.0, -2.0, 2.0, -2.0, 2.0])
    loss = clipped_loss(log_ratio, advantages, 0.2)
    assert loss.tolist() == pytest.approx([-2.4, 3.0, -1.0, 1.6, -2.2])
    (slope,) = torch.autograd.grad(loss.sum(), log_ratio)
    assert slope.tolist() == pytest.approx([0.0, 3.0, -1.0, 0.0, -2.2])


def test_advantages_by_group_by_batch_and_undivided() -> None:
    groups, rewards = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([1.0, 3.0, 10.0, 16.0, 7.0, 7.0])
    assert scaled_advantages(groups, rewards, "group").tolist() == pytest.approx([-1, 1, -1, 1, 0, 0])
    common = ((1 + 1 + 9 + 9) / 6) ** 0.5
    assert scaled_advantages(groups, rewards, "batch").tolist() == pytest.approx(
        [-1 / common, 1 / common, -3 / common, 3 / common, 0, 0]
    )
    assert scaled_advantages(groups, rewards, "none").tolist() == pytest.approx([-2, 2, -6, 6, 0, 0])
    alike = torch.tensor([0.1 + 1e-9, 0.1], dtype=torch.float64)
    assert scaled_advantages(torch.zeros(2, dtype=torch.long), alike, "group").tolist() == [0, 0]


def test_the_divergence_from_the_base_is_in_the_loss_and_logged(tmp_path: Path) -> None:
    settings = {"guidance": {"guidance_scale": 1.0}, "optimizer": {"prompts_per_step": 4, "micro_batch": 4}}
    plain = trainer(pipelines.stable_diffusion(), tmp_path, method=METHOD, **settings)
    held = trainer(pipelines.stable_diffusion(), tmp_path, method={**METHOD, "kl_weight": 0.5}, **settings)
    experience = plain.complete(plain.compute_experience(SAMPLES, 1, 1))
    one, other = (each.losses(experience, ROWS, 0) for each in (plain, held))
    moved = other.logged["control_norm"]
    assert float(moved.min()) > 0
    torch.testing.assert_close(other.loss.detach() - one.loss.detach(), 0.25 * moved)
    assert set(other.logged["index"].tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["schedule.eta=0.0"], r"schedule\.eta.*no density"),
        (["method.timesteps_per_trajectory=10"], r"at most 9 steps of 10 have noise"),
        (["method.buffer.importance_weighting=true"], r"importance_weighting.*clipped ratio"),
        (["method.clip_range=1.0"], r"method\.clip_range.*below 1"),
        (["method.group_size=3"], r"method\.group_size.*must divide"),
        (["guidance.guidance_scale=5.0", "guidance.guidance_in_control_computation=true"], r"with their guidance"),
    ],
)
def test_what_cannot_work_is_refused_in_words(settings: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_recipe("shapes", ["method.name=ddpo", *settings])


def test_a_reward_that_compares_the_samples_of_a_group_gets_whole_groups(tmp_path: Path) -> None:
    built = trainer(pipelines.stable_diffusion(), tmp_path, guidance={"guidance_scale": 1.0}, method=METHOD)
    plain = built.complete(built.compute_experience(SAMPLES, 1, 1))
    sizes: list[int] = []

    def ranked(images: Tensor, prompts: list[str]) -> RewardValues:
        sizes.append(len(images))
        total = left_over_right(images, prompts).total.argsort().argsort().float()
        return RewardValues(total, {"rank": total})

    built.problem = replace(built.problem, reward=ranked, groupwise=True)
    parts = [built.compute_experience(SAMPLES[:1], 1, 1), built.compute_experience(SAMPLES[1:], 1, 1)]
    found = built.complete(built.experience_class.cat(parts))
    assert sizes == [2, 2]
    assert sorted(found.rewards.tolist()) == [0, 0, 1, 1]
    assert found.endpoints is None
    torch.testing.assert_close(found.advantages, plain.advantages)  # of two samples one is better, whatever the scale
