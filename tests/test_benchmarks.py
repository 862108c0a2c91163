"""The benchmarks run to their end; their numbers need the machine that they are about."""

from __future__ import annotations

import importlib
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from amsd.diffusion.parameterizations import build_policy
from amsd.recipe import Recipe, RewardTerm
from amsd.training.problem import ControlProblem
from tests import pipelines
from tests.training.gaussian import GaussianAdapter, quadratic
from tests.training.test_closed_form import CENTRE, base_step, steps_of, uncontrolled

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A script of the folder as a module, imported as a script imports its neighbours."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.mark.parametrize("parameterization", ["lora", "full"])
def test_a_step_is_measured(
    parameterization: str, benchmark: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step of SD 1.5's true size, on a tiny network."""
    module = benchmark("sd15_step")
    monkeypatch.setattr(module, "random_pipeline", pipelines.stable_diffusion)
    arguments = Namespace(
        parameterization=parameterization, precision="fp32", inference_steps=3, loss_steps=4, batch=2, steps=2,
        guidance_scale=7.5, no_checkpointing=False,
    )  # fmt: skip
    found = module.measure(arguments)
    assert found["latent_shape"] == [4, 8, 8]
    assert found["peak_memory_gib"] > 0.1
    assert found["values"]["images_per_second"] > 0
    assert {"seconds/rollout", "seconds/adjoint"} <= found["values"].keys()


def test_reach_on_a_gaussian(benchmark: Callable[[str], Any]) -> None:
    """Both estimates against the closed form for a quadratic reward, whose second chaos no step's mean can reach.

    With E[x_N | x_k] = P_k x_k + Q_k: g_k = -sigma_k P_{k+1} (E[x_N | x_k] - c).
    """
    module = benchmark("reach")
    adapter, steps = GaussianAdapter(5), steps_of(5)
    recipe = Recipe(reward=(RewardTerm(name="brightness"),))
    problem = ControlProblem(
        recipe, adapter, build_policy(adapter, recipe.model), steps, quadratic, Accelerator(cpu=True).device
    )
    slope, _ = base_step(steps)
    mean, spread = uncontrolled(steps).terminal(steps)
    linear, moment, state = 0.0, 0.0, 1.0
    for k in range(len(steps)):
        after = float(slope[k + 1 :].prod())
        seen = (float(steps.sigma[k]) * after) ** 2
        linear += seen * ((mean - CENTRE) ** 2 + (float(slope[k]) * after) ** 2 * state)
        moment += seen * ((mean - CENTRE) ** 2 + spread**2)
        state = float(slope[k]) ** 2 * state + float(steps.sigma[k]) ** 2
    variance = spread**4 / 2 + spread**2 * (mean - CENTRE) ** 2

    found = module.pathwise(problem, ["one", "other"], 4096, seed=0)
    assert found.variance == pytest.approx(3 * variance, rel=0.1)
    assert found.second_moment == pytest.approx(moment / variance, rel=0.1)
    assert found.reach.standard_error < 0.03
    # The variance is an estimate too, hence more than the standard error of the products.
    assert found.reach.share * found.variance / (3 * variance) == pytest.approx(linear / variance, abs=0.06)
    free = module.derivative_free(problem, ["one", "other"], 96, 192, 0, 3 * variance)
    assert free.standard_error < 0.1
    assert free.share == pytest.approx(linear / variance, abs=3 * free.standard_error)
    assert linear / variance < moment / variance


def test_importance_weights_on_a_gaussian(benchmark: Callable[[str], Any]) -> None:
    """The tilted mean of N(0, 1) by exp(lambda x) is lambda; its self-normalised estimate says so within its error."""
    module = benchmark("importance")
    rewards = torch.randn(4, 4096, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target, ess = module.weighted(rewards, 0.5)
    assert target.mean == pytest.approx(0.5, abs=4 * target.standard_error)
    assert target.standard_error < 0.02
    assert ess == pytest.approx(torch.tensor(-0.25).exp().item(), abs=0.03)
    shifted = rewards.flip(0).roll(1, 1) + 0.5
    compared = module.compare(0, rewards, shifted, 0.5, 0.0)
    assert compared.reached == pytest.approx(1, abs=0.1)
    assert abs(compared.z) < 4
