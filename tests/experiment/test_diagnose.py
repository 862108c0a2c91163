"""Diagnoses where the answer is known: a Gaussian base in closed form, and what a broken case is called."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from amsd.diffusion.parameterizations import build_policy
from amsd.experiment.diagnose import DOCS, Finding, findings
from amsd.recipe import from_dict
from amsd.training.problem import ControlProblem
from tests.training.gaussian import GaussianFamily, quadratic
from tests.training.test_closed_form import SPREAD, gaussian_slope, steps_of

STEPS = 20
NAMES = [
    "memorylessness", "adjoint-growth-cfg-trajectories", "adjoint-growth-no-guidance", "adjoint-growth-full-cfg",
    "reward-spread", "reward-gradient-spread", "target-spread", "base-reconstruction", "control-to-target",
]  # fmt: skip


def problem(eta: float = 1.0, collection_batch: int = 1024, **guidance: Any) -> ControlProblem:
    recipe = from_dict(
        {
            "schedule": {"num_inference_steps": STEPS, "eta": eta},
            "guidance": {"guidance_scale": 1.0, **guidance},
            "method": {"reward_multiplier": 2.0},
            "reward": [{"name": "brightness"}],
            "training": {"collection_batch": collection_batch},
        }
    )
    family = GaussianFamily(STEPS)
    policy = build_policy(family, recipe.model)
    return ControlProblem(recipe, family, policy, steps_of(STEPS, eta), quadratic, torch.device("cpu"))


def diagnosed(chosen: ControlProblem, pairs: int = 400) -> dict[str, Finding]:
    found = findings(chosen, ["one", "other"], pairs)
    assert [finding.name for finding in found] == NAMES
    return {finding.name: finding for finding in found}


def correlation(eta: float) -> float:
    """Share of the terminal variance that two rollouts from one x_0 have in common."""
    steps = steps_of(STEPS, eta)
    slope = steps.A + steps.B * gaussian_slope(steps)
    memory, variance = 1.0, 1.0
    for k in range(STEPS):
        memory *= float(slope[k])
        variance = float(slope[k] ** 2) * variance + float(steps.sigma[k] ** 2)
    return memory**2 / variance


@pytest.mark.parametrize("eta", [1.0, 0.5, 0.3])
def test_memory_is_that_of_the_closed_form(eta: float) -> None:
    finding = diagnosed(problem(eta))["memorylessness"]
    assert finding.value == pytest.approx(correlation(eta), abs=0.06)
    assert finding.passed == (eta == 1.0)
    assert ("remembers" in finding.verdict) == (eta != 1.0)


def test_adjoint_norms_by_step_index_are_the_products_of_the_slopes() -> None:
    found = diagnosed(problem(), pairs=8)
    steps = steps_of(STEPS)
    slopes = steps.A + steps.B * gaussian_slope(steps)
    expected = torch.cat([slopes.flip(0).cumprod(0).flip(0), torch.ones(1)])
    for name in NAMES[1:4]:
        norms = torch.tensor(found[name].details["norms"])
        torch.testing.assert_close((norms / norms[-1]).double(), expected, rtol=1e-4, atol=1e-5)
    assert SPREAD < 1  # so the slopes shrink the adjoint
    assert all(found[name].passed for name in NAMES[1:4])


@pytest.mark.parametrize(
    ("guidance", "used"),
    [
        ({}, "no-guidance"),
        ({"guidance_scale": 5.0}, "cfg-trajectories"),
        (
            {
                "guidance_scale": 5.0,
                "guidance_in_adjoint_computation": True,
                "guidance_in_control_computation": True,
            },
            "full-cfg",
        ),
    ],
)
def test_the_three_modes_are_always_shown_and_the_recipes_own_is_named(guidance: dict[str, Any], used: str) -> None:
    found = diagnosed(problem(**guidance), pairs=4)
    own = [name for name in NAMES[1:4] if "This recipe uses this mode" in found[name].verdict]
    assert own == [f"adjoint-growth-{used}"]
    scales = [found[name].details["guidance_scale"] for name in NAMES[1:4]]
    assert scales == [guidance.get("guidance_scale", 7.5), 1.0, guidance.get("guidance_scale", 7.5)]


def test_what_fits_into_memory_changes_nothing() -> None:
    whole, parts = (diagnosed(problem(collection_batch=size, guidance_scale=5.0), pairs=5) for size in (1024, 3))
    for name in NAMES:
        assert parts[name].value == pytest.approx(whole[name].value, rel=1e-5, abs=1e-12)
        assert parts[name].details.keys() == whole[name].details.keys()


def test_an_unchanged_policy_is_its_base_and_a_changed_one_is_not() -> None:
    chosen = problem()
    same = diagnosed(chosen, pairs=4)
    assert same["base-reconstruction"].value == 0
    assert same["control-to-target"].value == 0
    with torch.no_grad():
        chosen.family.pipeline.unet.b.add_(1.0)
    changed = diagnosed(chosen, pairs=4)
    assert not changed["base-reconstruction"].passed
    assert not changed["control-to-target"].passed


def test_a_reward_that_one_sample_dominates_is_called_uneven() -> None:
    def spiked(images: torch.Tensor, prompts: Any) -> Any:
        values = quadratic(images, prompts)
        weight = torch.ones(len(images))
        weight[0] = 1000.0
        return replace(values, total=values.total * weight)

    found = diagnosed(replace(problem(), reward=spiked), pairs=8)
    assert not found["reward-gradient-spread"].passed
    assert not found["target-spread"].passed
    assert found["target-spread"].details["top_5_percent_share"] > 0.9
    even = diagnosed(problem(), pairs=8)
    assert even["reward-gradient-spread"].passed
    assert even["target-spread"].passed


@pytest.mark.parametrize(
    ("factor", "passed", "said"), [(1e-4, False, "weak"), (1.0, True, "fits"), (1e4, False, "strong")]
)
def test_lambda_is_measured_in_spreads_of_the_reward(factor: float, passed: bool, said: str) -> None:
    def scaled(images: torch.Tensor, prompts: Any) -> Any:
        values = quadratic(images, prompts)
        return replace(values, total=factor * values.total)

    found = diagnosed(replace(problem(), reward=scaled), pairs=40)["reward-spread"]
    assert found.value == pytest.approx(2.0 * found.details["standard_deviation"])
    assert found.passed == passed
    assert said in found.verdict


def test_every_figure_has_its_place_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / DOCS).read_text(encoding="utf-8")
    anchors = set(re.findall(r'<a id="([^"]+)">', page))
    for finding in diagnosed(problem(), pairs=4).values():
        assert finding.to_json()["docs"] == f"{DOCS}#{finding.name}"
        assert finding.name in anchors
        assert finding.verdict.endswith(".")
