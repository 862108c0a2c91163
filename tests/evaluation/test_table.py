"""The table says every number with its error."""

from __future__ import annotations

from rich.console import Console

from amsd.evaluation.result import EvaluationResult
from amsd.evaluation.statistics import summarize
from amsd.evaluation.table import results_table


def shown(*results: EvaluationResult) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(results_table(results, title="step 40"))
    return capture.get()


def result(base: list[float] | None, values: list[float], name: str = "default-eta0") -> EvaluationResult:
    return EvaluationResult(name, {}, "0", ("a", "b", "c"), {"clip-score": summarize("1", values, base)})


def test_means_differences_and_p_values() -> None:
    text = shown(result([0.0, 0.0, 0.0], [1.0, 2.0, 3.0]))
    assert "step 40" in text
    assert "default-eta0" in text
    assert " 2.00 ± 0.58" in text
    assert "+2.00 ± 0.58" in text
    assert "0.074" in text


def test_every_metric_of_every_setting_has_a_row() -> None:
    text = shown(result(None, [1.0, 2.0, 3.0], "a"), result(None, [1.0, 2.0, 4.0], "b"))
    assert text.count("clip-score") == 2
    assert "difference" not in text


def test_one_prompt_is_said_and_not_nan() -> None:
    text = shown(result([0.5], [1.0]))
    assert "1 (one prompt)" in text
    assert "nan" not in text.lower()


def test_a_tiny_p_value_is_short() -> None:
    """Differences 1, 1.02, .98: t = 1 / (.02 / sqrt 3) = 86.6, two degrees of freedom, p = 1.3e-4."""
    assert "1e-04" in shown(result([0.0, 0.0, 0.0], [1.0, 1.02, 0.98]))


def test_a_distance_has_no_difference_and_a_small_error_has_its_digits() -> None:
    found = result([0.0, 0.0, 0.0], [1.0, 2.0, 3.0])
    distance = summarize("1", [0.00041, 0.00042, 0.00043])
    text = shown(EvaluationResult("a", {}, "0", ("a", "b", "c"), {**found.metrics, "kid/clip": distance}))
    (line,) = (line for line in text.splitlines() if "kid/clip" in line)
    assert "0.0004200 ± 0.0000058" in line
    assert "+" not in line


def test_small_distances_and_long_names_fit_80_columns() -> None:
    name, metric = "fine-tuning-eta0.5-cfg7.5-steps50", "distance/shapes:classifier/kid"
    values = summarize("1", [1.1e-6, 1.3e-6, 1.2e-6], [0.0, 0.0, 0.0])
    text = shown(EvaluationResult(name, {}, "0", ("a", "b", "c"), {metric: values}))
    assert f"{name}\n" in "\n".join(line.strip() for line in text.splitlines()) + "\n"
    assert "(+1.200 ± 0.058)e-06" in text
