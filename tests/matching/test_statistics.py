"""Indices, threshold, importance weights and smoothing against closed forms."""

import itertools
import math

import pytest
import torch

from amsd.matching import (
    QuantileThreshold,
    effective_sample_size,
    inverse_probabilities,
    norm_ratio,
    plan_indices,
    self_normalized_weights,
    smooth,
    step_weights,
    stepwise_log_weights,
    stratified_indices,
)
from amsd.matching.indices import PLANNED
from amsd.strata import strata


@pytest.mark.parametrize(("steps", "count"), [(50, 4), (49, 4), (9, 4), (10, 10), (9, 1), (5, 5), (3, 2)])
def test_indices_are_stratified_distinct_and_sorted(steps: int, count: int) -> None:
    (first, a), (second, b) = strata(steps, count)
    assert a + b == count
    for seed in range(50):
        drawn = stratified_indices(steps, count, torch.Generator().manual_seed(seed)).tolist()
        assert drawn == sorted(set(drawn))
        assert len(drawn) == count
        assert sum(k in first for k in drawn) == a
        assert sum(k in second for k in drawn) == b


def test_half_of_the_draws_come_from_the_first_sixty_percent() -> None:
    assert strata(50, 4) == ((range(30), 2), (range(30, 50), 2))


def test_a_single_draw_is_late_as_half_of_one_rounded_down_is_none() -> None:
    """Recipes are warned of it (tests/recipe); runs of earlier releases go on with the steps that they began with."""
    drawn = [int(stratified_indices(5, 1, torch.Generator().manual_seed(seed))) for seed in range(200)]
    assert set(drawn) == {3, 4}


def test_inverse_probabilities_make_sums_unbiased() -> None:
    values = torch.arange(1, 8, dtype=torch.float64) ** 2
    (first, a), (second, b) = strata(7, 3)
    draws = [
        torch.tensor([*x, *y]) for x in itertools.combinations(first, a) for y in itertools.combinations(second, b)
    ]
    estimates = [(values[draw] * inverse_probabilities(7, draw)).sum() for draw in draws]
    assert torch.stack(estimates).mean().item() == pytest.approx(values.sum().item())


def test_more_indices_than_steps_is_an_error() -> None:
    with pytest.raises(ValueError, match="but got 6"):
        strata(5, 6)


@pytest.mark.parametrize(("steps", "count", "passes"), [(49, 4, 1), (49, 4, 10), (9, 4, 3), (49, 4, 50)])
def test_a_plan_gives_every_pass_its_strata_and_stores_a_fixed_number(steps: int, count: int, passes: int) -> None:
    sizes = set()
    for seed in range(30):
        plan = plan_indices(steps, count, passes, torch.Generator().manual_seed(seed))
        sizes.add(len(plan.stored))
        assert plan.stored.tolist() == sorted(set(plan.stored.tolist()))
        (first, a), _ = strata(steps, count)
        for used in plan.stored[plan.columns].tolist():
            assert len(set(used)) == count
            assert sum(k in first for k in used) == a
    assert len(sizes) == 1
    assert sizes.pop() <= min(steps, count * passes)


def test_a_plan_of_very_many_passes_takes_bounded_memory() -> None:
    plans = [plan_indices(49, 4, passes, torch.Generator().manual_seed(0)) for passes in (PLANNED, 10**18)]
    assert [len(plan.columns) for plan in plans] == [PLANNED, PLANNED]
    assert torch.equal(plans[0].columns, plans[1].columns)
    counts = torch.bincount(plans[1].columns.flatten(), minlength=49)
    for stratum, share in strata(49, 4):
        expected = PLANNED * share / len(stratum)
        assert (counts[stratum.start : stratum.stop] - expected).abs().max() <= 0.1 * expected


def test_a_plan_draws_every_step_equally_often() -> None:
    counts = torch.zeros(9)
    for seed in range(2000):
        plan = plan_indices(9, 4, 2, torch.Generator().manual_seed(seed))
        counts += torch.bincount(plan.stored[plan.columns[1]], minlength=9)
    (first, a), (second, b) = strata(9, 4)
    expected = torch.tensor([2000 * a / len(first)] * len(first) + [2000 * b / len(second)] * len(second))
    assert ((counts - expected).abs() < 5 * expected.sqrt()).all()


def test_threshold_is_the_bias_corrected_average_of_quantiles() -> None:
    batches = [torch.tensor([1.0, 2.0, 3.0, 5.0]) * scale for scale in (1, 10, 2)]
    threshold, quantiles = QuantileThreshold(), []
    for batch in batches:
        threshold = threshold.updated(batch, 0.5)
        quantiles.append(2.5 * float(batch[0]))
        weights = [0.1 * 0.9 ** (len(quantiles) - 1 - i) for i in range(len(quantiles))]
        expected = sum(w * q for w, q in zip(weights, quantiles, strict=True)) / sum(weights)
        assert threshold.value == pytest.approx(expected)
    assert threshold.mask(torch.tensor([0.0, threshold.value, 1e9])).tolist() == [1, 0, 0]


def test_clipped_outliers_pull_as_hard_as_the_threshold_and_the_others_as_before() -> None:
    threshold = QuantileThreshold().updated(torch.tensor([2.0]), 0.9)  # tau = 2
    u = torch.tensor([[0.3, 0.4], [3.0, 4.0], [0.0, 0.0], [2e6, 0.0]], dtype=torch.float64, requires_grad=True)
    loss = u.square().sum(1)
    weights = threshold.clip(loss.detach().sqrt())
    (gradient,) = torch.autograd.grad((weights * loss).sum(), u)
    assert gradient.norm(dim=1).tolist() == pytest.approx([1.0, 4.0, 0.0, 4.0])
    assert torch.nn.functional.cosine_similarity(gradient[1], u[1].detach(), dim=0) == pytest.approx(1)


def test_an_outlier_in_the_first_batch_is_forgotten() -> None:
    threshold = QuantileThreshold().updated(torch.tensor([100.0]), 0.9)
    for _ in range(40):
        threshold = threshold.updated(torch.tensor([1.0]), 0.9)
    assert threshold.value < 2.5


def test_step_weights_are_the_log_ratio_of_two_gaussian_densities() -> None:
    random = torch.Generator().manual_seed(0)
    mean, other, noise = torch.randn(3, 5, 4, generator=random, dtype=torch.float64)
    sigma = 0.3
    x = mean + sigma * noise
    old, new = torch.distributions.Normal(mean, sigma), torch.distributions.Normal(other, sigma)
    expected = (new.log_prob(x) - old.log_prob(x)).sum(1)
    assert torch.allclose(stepwise_log_weights((other - mean) / sigma, noise), expected)


@pytest.mark.parametrize("power", [0, 1, 2])
def test_weights_by_step_even_out_the_scales_of_controls(power: int) -> None:
    scale = torch.tensor([-0.02, -0.1, -1.5, -math.inf], dtype=torch.float64)
    weights = step_weights(scale, power)
    assert float(weights[:3].mean()) == pytest.approx(1)
    assert float(weights[3]) == 0  # a step without a control has no loss
    assert float(weights[0] / weights[2]) == pytest.approx(75.0**power)


def test_effective_sample_size() -> None:
    assert effective_sample_size(torch.zeros(20)).item() == pytest.approx(20)
    assert effective_sample_size(torch.tensor([1e4, 0.0, 0.0])).item() == pytest.approx(1)
    assert effective_sample_size(torch.tensor([-1e4, -1e4], dtype=torch.float64)).item() == pytest.approx(2)
    # E[w]^2 / E[w^2] = exp(-d^2) for a mean shift of d standard deviations
    noise = torch.randn(400_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_weights = stepwise_log_weights(torch.full_like(noise, 0.5), noise)
    assert effective_sample_size(log_weights).item() / 400_000 == pytest.approx(math.exp(-0.25), rel=0.01)
    assert self_normalized_weights(log_weights).mean().item() == pytest.approx(1)


def test_smoothing_clips_each_draw_to_the_quantile_of_its_sample() -> None:
    gradients = torch.tensor([[[3.0, 4.0]], [[0.0, 1.0]], [[0.0, -1.0]]])
    result = smooth(gradients, 0.5)
    assert result.norms[:, 0].tolist() == [5, 1, 1]
    assert result.scaling[:, 0].tolist() == pytest.approx([0.2, 1, 1])
    assert result.gradient[0].tolist() == pytest.approx([0.2, 0.8 / 3])
    assert torch.equal(smooth(gradients, None).gradient, gradients.mean(0))


def test_the_ratio_of_norms_is_one_for_equal_predictions_and_scales_with_them() -> None:
    base = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    scales = torch.tensor([1.0, 2.0, 0.5])
    torch.testing.assert_close(norm_ratio(scales.view(3, 1, 1, 1) * base, base), scales)
