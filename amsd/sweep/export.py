"""A sweep for other tools: the winning recipe, a table of trials, a W&B sweep configuration."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict
from typing import Any

from amsd.errors import UsageError
from amsd.evaluation.statistics import measured
from amsd.recipe import dump_toml
from amsd.recipe.schema import Tracking
from amsd.sweep.plan import Plan
from amsd.sweep.results import SweepResults


def winning_recipe(results: SweepResults, number: int | None = None) -> str:
    """The recipe (TOML) of the best trial, or of trial `number`, with the sweep's first seed.

    Raises:
        UsageError: no trial has completed yet, none is feasible, or there is no such trial.
    """
    chosen = results.best if number is None else next((t for t in results.trials if t.number == number), None)
    if chosen is None and number is not None:
        raise UsageError(f"sweep {results.name} has no trial {number} (it has {len(results.trials)})")
    if chosen is None:
        infeasible = f"; {len(results.complete)} completed, but none is feasible" if results.complete else ""
        raise UsageError(f"sweep {results.name}: no best trial yet{infeasible}")
    plan = Plan(results.sweep, results.recipe.model_dump(mode="json", exclude_none=True))
    recipe = plan.resolve({**chosen.settings, "training.seed": results.sweep.seeds[0]})
    tracking = Tracking(**{**recipe.tracking.model_dump(), "name": f"{results.name}-best"})
    values = zip(results.objectives, chosen.values or (), strict=False)
    shown = [f"{o.label} = {measured(value, chosen.error_of(o.label))}" for o, value in values]
    seeds = results.sweep.seeds
    over = f"mean and standard error over seeds {list(seeds)}" if len(seeds) > 1 else f"seed {seeds[0]}"
    title = f"# Trial {chosen.number} of sweep {results.name} ({over}): {', '.join(shown) or 'not complete'}"
    return f"{title}\n\n{dump_toml(recipe.model_copy(update={'tracking': tracking}))}"


def as_data(results: SweepResults) -> dict[str, Any]:
    """Everything as JSON data; numbers that JSON does not have become null."""
    best = results.best
    return {
        "name": results.name,
        "directory": str(results.directory),
        "objectives": [
            {"label": objective.label, "direction": objective.direction} for objective in results.objectives
        ],
        "best": best.number if best else None,
        "pareto": [trial.number for trial in results.pareto],
        "importance": dict(results.importance),
        "stopped": results.stopped,
        "trials": [_plain(asdict(trial)) for trial in results.trials],
    }


def as_csv(results: SweepResults) -> str:
    """One row per trial: number, state, guidance mode, parameters, objectives with standard errors, constraints."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    dimensions, bounds = list(results.sweep.search), [constraint.metric for constraint in results.sweep.constraint]
    labels = [objective.label for objective in results.objectives]
    heads = [head for label in labels for head in (label, f"{label} standard error")]
    writer.writerow(
        ["number", "state", "cfg_mode", *dimensions, *heads, *bounds, "started", "seconds", "copy_of", "error"]
    )
    for trial in results.trials:
        values = trial.values or ("",) * len(labels)
        errors = [trial.error_of(label) if trial.values else None for label in labels]
        found = [cell for pair in zip(values, errors, strict=True) for cell in pair]
        limits = [trial.constraints.get(metric, "") for metric in bounds]
        params = [trial.params.get(name, "") for name in dimensions]
        began = trial.started.isoformat(timespec="seconds") if trial.started else ""
        last = [began, trial.duration, trial.copy_of, trial.error]
        writer.writerow([trial.number, trial.state, trial.cfg_mode, *params, *found, *limits, *last])
    return stream.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, int | float | str | bool | None) else str(value)
