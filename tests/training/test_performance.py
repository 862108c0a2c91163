"""`performance/`: operations counted from the method's cost, over the seconds of the step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from amsd.diffusion.blueprint import forward_flops
from amsd.diffusion.families import family_for
from amsd.diffusion.parameterizations import build_policy
from amsd.recipe import Recipe, load_recipe
from amsd.recipe.cost import forwards_per_step
from amsd.report.figures import curves
from amsd.training.problem import ControlProblem
from amsd.training.speed import Speed, matrix_rate
from tests import pipelines

CPU = torch.device("cpu")


def speed_of(recipe: Recipe) -> tuple[Speed, float]:
    family = family_for(pipelines.stable_diffusion())
    policy = build_policy(family, recipe.model)
    problem = ControlProblem(recipe, family, policy, family.steps(recipe.schedule), None, CPU)  # type: ignore[arg-type]
    flops = forward_flops(family)
    assert flops is not None
    return Speed(problem), flops


@pytest.mark.parametrize("name", ["full", "lora"])
def test_operations_are_those_of_one_call(name: str) -> None:
    family = family_for(pipelines.stable_diffusion())
    recipe = load_recipe("shapes", [f"model.parameterization={name}"])
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        family.network(family.denoiser)(
            torch.zeros(1, *family.latent_shape), torch.zeros(1), family.blank_condition("cpu")
        )
    build_policy(family, recipe.model)  # adapters are no part of a plain call
    assert forward_flops(family) == counter.get_total_flops()


def test_on_policy_steps_cost_what_the_plan_says() -> None:
    recipe = load_recipe("shapes")
    speed, flops = speed_of(recipe)
    values = speed.values(collected=16, seconds=2.0)
    assert values["performance/images_per_second"] == 8.0
    assert values["performance/tflops"] == pytest.approx(forwards_per_step(recipe) * flops / 2.0 / 1e12)
    assert 0 < values["performance/mfu"] == pytest.approx(values["performance/tflops"] / speed._rate)


def test_a_buffers_steps_differ_and_add_up_to_the_plan() -> None:
    recipe = load_recipe("shapes-buffer")
    method, batch = recipe.method, recipe.optimizer.prompts_per_step
    size, passes = method.buffer.size, method.passes  # type: ignore[attr-defined]
    steps = size * passes // batch
    speed, flops = speed_of(recipe)
    work = [speed.values(size if step == 0 else 0, 1.0)["performance/tflops"] for step in range(steps)]
    assert work[0] > 2 * work[1]
    assert sum(work) == pytest.approx(steps * forwards_per_step(recipe) * flops / 1e12)


def test_the_rate_is_that_of_products() -> None:
    rate = matrix_rate(CPU, torch.float32, 64)
    assert 1e-5 < rate < 100


def test_reports_name_them() -> None:
    assert {"performance/images_per_second", "performance/tflops", "performance/mfu"} <= set(curves._SPEED)


def test_they_are_logged(tmp_path: Path) -> None:
    from amsd.experiment.train import train
    from amsd.tracking.log import read_log
    from tests.experiment.test_train import recipe

    pipelines.stable_diffusion(scheduler=pipelines.ddim()).save_pretrained(tmp_path / "model")
    chosen = recipe(tmp_path / "model", training={"steps": 1}, evaluation={"every": 0})
    run = train(chosen, tmp_path / "run").run
    (values,) = [entry.values for entry in read_log(run.metrics).entries if entry.kind == "step"]
    for name in ("images_per_second", "tflops", "mfu"):
        assert values[f"performance/{name}"] > 0
