"""Aggregation against scipy, closed forms and the reference's own numbers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from scipy import stats

from amsd.evaluation.statistics import compare, mean, standard_error, summarize

GOLDEN = Path(__file__).parents[1] / "golden" / "g6_evaluation.safetensors"


def test_mean_and_standard_error_of_known_numbers() -> None:
    assert mean([1, 2, 3, 4]) == 2.5
    assert standard_error([1, 2, 3, 4]) == pytest.approx(math.sqrt(5 / 3) / 2)


def test_paired_comparison_equals_scipys_t_test() -> None:
    generator = np.random.default_rng(0)
    base = generator.normal(0, 5, 40)
    tuned = base + generator.normal(0.2, 0.5, 40)
    paired = compare(tuned.tolist(), base.tolist())
    expected = stats.ttest_rel(tuned, base)
    assert paired.difference == pytest.approx((tuned - base).mean())
    assert paired.standard_error == pytest.approx(stats.sem(tuned - base))
    assert paired.p_value == pytest.approx(expected.pvalue)


def test_pairing_removes_the_spread_between_prompts() -> None:
    base = [0.0, 100.0, -50.0, 7.0]
    paired = compare([value + gain for value, gain in zip(base, [1.0, 1.1, 0.9, 1.0], strict=True)], base)
    assert paired.standard_error == pytest.approx(math.sqrt(0.02 / 3) / 2)
    assert paired.p_value is not None
    assert paired.p_value < 1e-3


def test_two_prompts_have_a_cauchy_p_value() -> None:
    """One degree of freedom: p = 1 - 2 arctan(|t|)/pi, with t = 2 for differences 1 and 3."""
    assert compare([1.0, 3.0], [0.0, 0.0]).p_value == pytest.approx(1 - 2 * math.atan(2) / math.pi)


def test_one_prompt_has_no_error_and_no_p_value() -> None:
    result = summarize("1", [0.5], [0.25])
    assert result.mean == 0.5
    assert result.standard_error is None
    assert result.paired is not None
    assert (result.paired.difference, result.paired.standard_error, result.paired.p_value) == (0.25, None, None)


def test_equal_models_differ_by_nothing() -> None:
    paired = compare([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert (paired.difference, paired.standard_error, paired.p_value) == (0.0, 0.0, 1.0)


def test_a_constant_gain_is_certain() -> None:
    paired = compare([2.0, 3.0], [1.0, 2.0])
    assert (paired.difference, paired.standard_error, paired.p_value) == (1.0, 0.0, 0.0)


def test_no_values_and_unequal_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        mean([])
    with pytest.raises(ValueError, match="3 prompts cannot be paired with 2"):
        compare([1, 2, 3], [1, 2])


def test_reference_numbers() -> None:
    """g6: prompt means, their mean and standard error, which the reference aggregates in float32."""
    golden = load_file(GOLDEN)
    names = [key.removeprefix("prompt_mean/") for key in golden if key.startswith("prompt_mean/")]
    assert len(names) == 4
    for name in names:
        if f"in/{name}" in golden:
            per_prompt = golden[f"in/{name}"].double().mean(1).tolist()
        else:
            per_prompt = golden["dreamsim/variance_f64"].tolist()
        assert per_prompt == pytest.approx(golden[f"prompt_mean/{name}"].tolist(), rel=1e-4)
        result = summarize("1", per_prompt)
        assert result.mean == pytest.approx(golden[f"avg/{name}"].item(), rel=1e-4, abs=1e-6)
        assert result.standard_error == pytest.approx(golden[f"se/{name}"].item(), rel=1e-4)
