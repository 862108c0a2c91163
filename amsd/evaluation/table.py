"""Results as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from amsd.evaluation.result import EvaluationResult, Metric
from amsd.evaluation.statistics import measured


def results_table(results: Sequence[EvaluationResult], title: str | None = None) -> Group:
    """One table per setting, one row per metric: mean ± standard error and, with a base, the paired difference."""
    heading = [] if title is None else [Text(title, style="italic")]
    return Group(*heading, *map(_table, results))


def _table(result: EvaluationResult) -> Table:
    paired = any(metric.paired for metric in result.metrics.values())
    # The name of a setting is longer than a column of an 80-column terminal.
    table = Table(title=result.name, title_justify="left", title_style="bold")
    table.add_column("metric", overflow="fold")
    table.add_column("mean ± s.e.", justify="right", no_wrap=True)
    if paired:
        table.add_column("difference to base", justify="right", no_wrap=True)
        table.add_column("p", justify="right", no_wrap=True)
    for name, metric in result.metrics.items():
        cells = [_value(metric.mean, metric.standard_error), *(_comparison(metric) if paired else ())]
        table.add_row(Text(name), *cells)
    return table


def _comparison(metric: Metric) -> tuple[str, str]:
    pair = metric.paired
    if pair is None:
        return "", ""
    return _value(pair.difference, pair.standard_error, sign=True), _probability(pair.p_value)


def _value(value: float, error: float | None, sign: bool = False) -> str:
    return measured(value, error, "+" if sign else "") + ("" if error is not None else " (one prompt)")


def _probability(p: float | None) -> str:
    if p is None:
        return "-"
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}" if p > 1e-99 else "0"
