"""The benchmarks run to their end; their numbers need the machine that they are about."""

from __future__ import annotations

import importlib
import math
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from amsd.diffusion.parameterizations import build_policy
from amsd.files import write_json
from amsd.recipe import Recipe, RewardTerm
from amsd.recipe.cost import training_cost
from amsd.recipe.methods import METHODS
from amsd.training.problem import ControlProblem
from tests import pipelines
from tests.training.gaussian import GaussianFamily, quadratic
from tests.training.test_closed_form import CENTER, base_step, steps_of, uncontrolled

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A script of the folder as a module, imported as a script imports its neighbors."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.mark.parametrize("parameterization", ["lora", "full"])
def test_a_step_is_measured(
    parameterization: str, benchmark: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step of SD 1.5's true size, on a tiny network."""
    module = benchmark("sd15_step")
    monkeypatch.setattr(module.workbench, "random_pipeline", pipelines.stable_diffusion)
    arguments = Namespace(
        parameterization=parameterization, precision="fp32", inference_steps=3, loss_steps=4, batch=2, steps=2,
        guidance_scale=7.5, no_checkpointing=False,
    )  # fmt: skip
    found = module.measure(arguments)
    assert found["latent_shape"] == [4, 8, 8]
    assert found["peak_memory_gib"] > 0.1
    assert found["values"]["performance/images_per_second"] > 0
    assert {"seconds/rollout", "seconds/adjoint"} <= found["values"].keys()


def test_reach_on_a_gaussian(benchmark: Callable[[str], Any]) -> None:
    """Both estimates against the closed form for a quadratic reward, whose second chaos no step's mean can reach.

    With E[x_N | x_k] = P_k x_k + Q_k: g_k = -sigma_k P_{k+1} (E[x_N | x_k] - c).
    """
    module = benchmark("reach")
    family, steps = GaussianFamily(5), steps_of(5)
    recipe = Recipe(reward=(RewardTerm(name="brightness"),))
    problem = ControlProblem(
        recipe, family, build_policy(family, recipe.model), steps, quadratic, Accelerator(cpu=True).device
    )
    slope, _ = base_step(steps)
    mean, spread = uncontrolled(steps).terminal(steps)
    linear, moment, state = 0.0, 0.0, 1.0
    for k in range(len(steps)):
        after = float(slope[k + 1 :].prod())
        seen = (float(steps.sigma[k]) * after) ** 2
        linear += seen * ((mean - CENTER) ** 2 + (float(slope[k]) * after) ** 2 * state)
        moment += seen * ((mean - CENTER) ** 2 + spread**2)
        state = float(slope[k]) ** 2 * state + float(steps.sigma[k]) ** 2
    variance = spread**4 / 2 + spread**2 * (mean - CENTER) ** 2

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
    """The tilted mean of N(0, 1) by exp(lambda x) is lambda: what is measured says so, and errors are the spread."""
    module = benchmark("importance")
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(200):
        base = torch.randn(4, 512, generator=generator, dtype=torch.float64)
        noisy = base + 0.5 + 0.1 * torch.randn(base.shape, generator=generator, dtype=torch.float64)
        found.append(module.compare(base, noisy, 0.5))
    expectations = {"base": 0.0, "importance": 0.5, "finetuned": 0.5, "difference": 0.0, "reached": 1.0}
    for name, expected in expectations.items():
        _calibrated([(getattr(one, name).value, getattr(one, name).standard_error) for one in found], expected)
    assert found[0].ess == pytest.approx(math.exp(-0.25), abs=0.03)
    by_prompt = torch.tensor([one.z_by_prompt for one in found])
    assert by_prompt.mean(0) == pytest.approx([0] * 4, abs=0.2)
    # Samples of both models from the same noise: most of the scatter of either mean is not in their difference.
    assert found[0].difference.standard_error < 0.7 * found[0].importance.standard_error


@pytest.mark.parametrize("name", ["shapes", "flow"])
def test_what_is_compared_with_importance_weights_converges_to_the_whole_tilt(
    benchmark: Callable[[str], Any], name: str
) -> None:
    """No mask, no weight decay, the memoryless noise: each would move the fixed point."""
    made = benchmark("importance").Weighted(name, "shapes:area", 10.0, "big", 8, 10, 40, ()).recipe(0)
    assert made.method.per_sample_threshold_quantile < 0
    assert (made.optimizer.weight_decay, made.schedule.eta, made.guidance.guidance_scale) == (0, 1, 1)
    assert made.method.adjoint_at == "next"
    assert len(made.prompts.train) == 8


def _calibrated(figures: list[tuple[float, float]], expected: float) -> None:
    """Estimates scatter about what they estimate as widely as their standard errors say."""
    values, errors = torch.tensor(figures, dtype=torch.float64).unbind(1)
    assert float(values.mean()) == pytest.approx(expected, abs=0.3 * float(errors.mean()))
    assert float(values.std()) == pytest.approx(float(errors.mean()), rel=0.15)


def test_the_page_of_gpu_sizes_holds_what_the_plan_computes(benchmark: Callable[[str], Any]) -> None:
    sizing = benchmark("sizing")
    text = sizing.PAGE.read_text(encoding="utf-8")
    assert sizing.page(text) == text


@pytest.fixture
def leaderboard(benchmark: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A module of `benchmarks/methods`."""
    monkeypatch.syspath_prepend(str(BENCHMARKS / "methods"))
    return benchmark


@pytest.mark.parametrize("model", ["unet", "flow"])
def test_methods_are_compared_at_equal_work(leaderboard: Callable[[str], Any], model: str) -> None:
    """Every run of the leaderboard costs its budget to a tenth, and its rate is a multiple of its recipe's."""
    parts, results = leaderboard("parts"), leaderboard("results")
    assert {settings["method.name"] for settings in parts.METHODS.values()} == set(METHODS)
    length = parts.Length(12_000, 3)
    for name in parts.METHODS:
        recipe = parts.Contender(model, name, 3.0, 0).recipe(length)
        assert training_cost(recipe) == pytest.approx(length.budget, rel=0.1)
        assert recipe.training.steps == length.checkpoints * recipe.training.validate_every
        assert recipe.evaluation.metrics == ("shapes:alignment",)
        assert recipe.optimizer.learning_rate == pytest.approx({"unet": 1.2e-3, "flow": 6e-4}[model])
        assert recipe.method.tilt in (results.TILT, None)


def test_gains_for_a_divergence_and_distances_to_the_tilt(leaderboard: Callable[[str], Any]) -> None:
    parts, results = leaderboard("parts"), leaderboard("results")

    def point(kl: float, gains: list[float]) -> Any:
        return results.RunPoint(10, 100.0, 1.0, kl, {parts.REWARD: gains})

    first = results.FinishedRun(0, (point(2.0, [0.1, 0.3]), point(6.0, [0.4, 0.8])))
    second = results.FinishedRun(0, (point(2.0, [0.0, 0.2]), point(6.0, [0.2, 0.4])))
    found = results.against([first], [second])
    assert (found.value, found.standard_error) == pytest.approx((0.3, 0.1))
    rates = results.efficiency([first], 0), results.against([first], [second], lambda each: each.efficiencies)
    assert [each.value for each in rates] == pytest.approx([0.2 / 2**0.5, 0.3 / 6**0.5])
    assert [each.standard_error for each in rates] == pytest.approx([0.1 / 2**0.5, 0.1 / 6**0.5])
    both = results.change([first, second], parts.REWARD)  # seeds .6 and .3, prompts .3 and .6
    assert (both.value, both.standard_error) == pytest.approx((0.45, math.hypot(0.15, 0.15)))
    distance = results.distance([first, second])
    assert (distance.value, distance.standard_error) == pytest.approx((6 - 50 * 0.45, 50 * both.standard_error))


def test_the_leaderboards_parts_follow_from_the_results_that_are_there(
    leaderboard: Callable[[str], Any], tmp_path: Path
) -> None:
    """Seeds wait for their method's learning rate; results of two folders become those of one."""
    parts, results, pool = leaderboard("parts"), leaderboard("results"), leaderboard("pool")
    plan = pool.Leaderboard(tmp_path / "one", parts.Length(), ["unet"], ["am", "ram"], seeds=3)

    def write(folder: str, name: str, factor: float, gain: float, kl: float) -> None:
        changes = {parts.REWARD: [gain, gain], parts.ALIGNMENT: [0.0, 0.0], parts.DIVERSITY: [0.0, 0.0]}
        point = {"step": 40, "forwards": 24_000.0, "seconds": 60.0, "kl": kl, "changes": changes}
        write_json(
            parts.Contender("unet", name, factor, 0).result(tmp_path / folder), {"machine": "x", "points": [point]}
        )

    assert list(plan.parts())[-4:] == [None] * 4
    for index, factor in enumerate(parts.FACTORS):
        write("one", "am", factor, 0.1 + index, 3.0)
        write("other", "ram", factor, 0.1 + index, 3.0 + 60 * index)  # the higher reward has left the base
    waiting = [part for part in plan.parts() if part is not None and part.seed]
    assert waiting == [parts.Contender("unet", "am", parts.FACTORS[1], seed) for seed in (1, 2)]
    assert (results.add(plan.out, tmp_path / "other"), results.add(plan.out, tmp_path / "other")) == (2, 0)
    assert [part for part in plan.parts() if part.seed and part.method == "ram"] == [
        parts.Contender("unet", "ram", parts.FACTORS[0], seed) for seed in (1, 2)
    ]
    with pool._held(waiting[0], plan.out) as held, pool._held(waiting[0], plan.out) as again:
        assert (held, again) == (True, False)


def test_the_page_of_methods_says_what_the_results_are(leaderboard: Callable[[str], Any], tmp_path: Path) -> None:
    """All sections, from results that are made up; a method without seeds of its own, or a section, is not there."""
    parts, page = leaderboard("parts"), leaderboard("page")
    length = parts.Length()

    def write(folder: Path, part: Any, gain: float, kl: float) -> None:
        changes = {parts.REWARD: [gain, gain], parts.ALIGNMENT: [0.0, 0.0], parts.DIVERSITY: [0.0, 0.0]}
        point = {"step": 9, "forwards": 6000.0, "seconds": 1.0, "kl": kl, "changes": changes}
        write_json(part.result(folder), {"machine": "x", "points": [point, {**point, "forwards": 12_000.0}]})

    for name in parts.METHODS:
        for factor, seed in ((parts.FACTORS[0], 0), (parts.FACTORS[0], 1), (parts.FACTORS[1], 0)):
            part = parts.Contender("unet", name, factor, seed)
            write(tmp_path / length.name, part, 0.4 if name == "eam" else 0.2, 4.0 + 9 * (factor != 1))
    times = parts.Contender("unet", "am", 1.0, 0).timing(tmp_path / length.name)
    write_json(times, {"machine": "a fast one", "seconds_per_call": 0.01})
    file = tmp_path / "docs" / "methods.md"
    page.write_page(tmp_path, file, length)
    text = file.read_text(encoding="utf-8")
    assert "| eam | 0.0004 | 2 | 12,000 | – | 4.0 ± 0.0 | +0.400 ± 0.000 | +16.0 ± 0.0 |" in text
    assert "| am | 0.0004 | 2 | 12,000 | 120 |" in text
    assert "| eam | 0.200 ± 0.000 | +0.100 ± 0.000 |" in text
    assert "a fast one" in text
    assert "Reading it" not in text  # the flow model's results are missing
    assert "--curve" not in text
    for name in parts.CURVE:
        part = parts.Contender("unet", name, 1.0, 0)
        write(tmp_path / replace(length, tilt=parts.TILTS[0]).name, part, 0.1, 1.0)
    page.write_page(tmp_path, file, length)
    text = file.read_text(encoding="utf-8")
    assert "| 25 | 1 | 1.0 | +0.100 ± 0.000 | 1.0 | +0.100 ± 0.000 | 0.100 ± 0.000 | +0.000 ± 0.000 |" in text
    assert (file.parent / "images" / "methods-unet.svg").stat().st_size > 10_000
