"""The cost model: the numbers of method.md section 7, and the expected smallest index by enumeration."""

from __future__ import annotations

import itertools

import pytest

from amsd.recipe import Recipe, from_dict
from amsd.recipe.catalog import folder
from amsd.recipe.cost import cost_per_trajectory, forwards_per_step, training_cost
from amsd.recipe.load import read_toml
from amsd.strata import expected_smallest_index, strata

GUIDED = {"guidance_scale": 7.5}


def shapes(**sections: object) -> Recipe:
    return from_dict({**read_toml(folder("recipes") / "shapes.toml"), **sections})


@pytest.mark.parametrize(("steps", "count"), [(10, 4), (7, 3), (5, 4), (10, 1), (5, 5)])
def test_expected_smallest_index_against_enumeration(steps: int, count: int) -> None:
    (first, a), (second, b) = strata(steps, count)
    chosen = [
        min(left + right)
        for left in itertools.combinations(first, a)
        for right in itertools.combinations(second, b)
    ]  # fmt: skip
    assert expected_smallest_index(steps, count) == pytest.approx(sum(chosen) / len(chosen))


def test_passes_draw_new_indices_until_a_stratum_is_used_up() -> None:
    # Two passes draw four distinct ones of the first six; four passes need all six.
    chosen = [min(drawn) for drawn in itertools.combinations(range(6), 4)]
    assert expected_smallest_index(10, 4, passes=2) == pytest.approx(sum(chosen) / len(chosen))
    assert expected_smallest_index(10, 4, passes=4) == 0


def test_the_numbers_of_the_method() -> None:
    """N = 50, K = 4, guided sampling: 100 + ~80 + 12 on-policy; 10 passes of a buffer: (100 + ~98)/10 + 12."""
    schedule = {"num_inference_steps": 50, "final_step": "midpoint"}
    cost = cost_per_trajectory(shapes(schedule=schedule, guidance=GUIDED))
    assert cost["sampling"] == 100
    assert cost["adjoint"] == pytest.approx(2 * (49 - (30 - 2) / 3))
    assert cost["loss"] == 12
    assert cost.total == pytest.approx(100 + 79.33 + 12 + 1, abs=0.01)  # the smallest loss step's own eps_0
    method = {"name": "buffer-am", "timesteps_per_trajectory": 4, "buffer": {"passes": 10, "size": 96}}
    buffered = cost_per_trajectory(shapes(schedule=schedule, guidance=GUIDED, method=method))
    assert buffered["sampling"] + buffered["adjoint"] + buffered["loss"] == pytest.approx(32, abs=0.3)
    assert buffered["weights"] == 0  # nothing uses them
    assert buffered.total <= 32.0


@pytest.mark.parametrize(("guided_control", "dropout", "expected"), [(False, 0.0, 8), (True, 0.0, 0), (True, 0.25, 2)])
def test_importance_weights_cost_what_the_loss_does_not_compute(
    guided_control: bool, dropout: float, expected: float
) -> None:
    method = {"name": "buffer-am", "timesteps_per_trajectory": 4, "buffer": {"size": 96, "min_ess": 0.3}}
    guidance = {**GUIDED, "guidance_in_control_computation": guided_control}
    assert (
        cost_per_trajectory(shapes(guidance=guidance, method=method, prompts={"dropout": dropout}))["weights"]
        == expected
    )


def test_noiseless_last_step_is_no_loss_step() -> None:
    """Of 4 steps, 3 carry a control and all are drawn: the smallest is 0, and the adjoint still starts at the end."""
    schedule = {"num_inference_steps": 4, "final_step": "noiseless"}
    method = {"name": "am", "timesteps_per_trajectory": 3}
    cost = cost_per_trajectory(shapes(schedule=schedule, method=method))
    assert (cost["sampling"], cost["adjoint"], cost["base"], cost["loss"]) == (4, 2 * 3, 1, 9)


def test_steps_prompts_and_processes() -> None:
    method = {"name": "am", "outlier_threshold": "current"}
    recipe = shapes(method=method, optimizer={"prompts_per_step": 16, "micro_batch": 8}, training={"steps": 40})
    assert cost_per_trajectory(recipe)["mask"] == 4  # two chunks: the mask needs all losses before the first gradient
    assert cost_per_trajectory(recipe, processes=2)["mask"] == 0
    previous = recipe.model_copy(update={"method": recipe.method.model_copy(update={"outlier_threshold": "previous"})})
    assert cost_per_trajectory(previous)["mask"] == 0
    assert training_cost(recipe) == 40 * forwards_per_step(recipe) == 640 * cost_per_trajectory(recipe).total
