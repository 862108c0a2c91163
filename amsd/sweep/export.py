"""A sweep for other tools: the winning recipe, a table of trials, a W&B sweep configuration."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import asdict
from itertools import islice
from typing import Any

from amsd.errors import UsageError
from amsd.evaluation.statistics import measured
from amsd.places import in_text
from amsd.recipe import dump_toml
from amsd.recipe.tracking import Tracking
from amsd.sweep.results import SweepResults
from amsd.sweep.schema import TRAINING, Objective, SweepPlan
from amsd.sweep.search import LARGEST_GRID, Dimension, values
from amsd.tracking.names import Names


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
    plan = SweepPlan(results.sweep, results.recipe.model_dump(mode="json", exclude_none=True))
    recipe = plan.resolve({**chosen.settings, "training.seed": results.sweep.seeds[0]})
    tracking = Tracking(**{**recipe.tracking.model_dump(), "name": f"{results.name}-best"})
    reached = zip(results.objectives, chosen.values or (), strict=False)
    shown = [f"{o.label} = {measured(value, chosen.error_of(o.label))}" for o, value in reached]
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
        "importance": {
            name: {"share": share, "standard_error": error} for name, (share, error) in results.importance.items()
        },
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
        own = trial.values or ("",) * len(labels)
        errors = [trial.error_of(label) if trial.values else None for label in labels]
        found = [cell for pair in zip(own, errors, strict=True) for cell in pair]
        limits = [trial.constraints.get(metric, "") for metric in bounds]
        params = [trial.params.get(name, "") for name in dimensions]
        began = trial.started.isoformat(timespec="seconds") if trial.started else ""
        last = [began, trial.duration, trial.copy_of, trial.error]
        writer.writerow([trial.number, trial.state, trial.cfg_mode, *params, *found, *limits, *last])
    return stream.getvalue()


def wandb_configuration(plan: SweepPlan) -> dict[str, Any]:
    """The same search as a W&B sweep.

    Raises:
        UsageError: it uses what W&B sweeps do not have (several objectives, constraints, free names of dimensions).
    """
    sweep = plan.sweep
    if odd := [name for name in sweep.search if not re.fullmatch(r"[A-Za-z_][\w.-]*", name)]:
        raise UsageError(f"sweep {sweep.name}: W&B does not take the name {odd[0]!r}: letters, digits, _ . and - only")
    if len(sweep.objective) > 1 or sweep.constraint:
        raise UsageError(
            f"sweep {sweep.name}: W&B sweeps have one objective and no constraints, but this one has "
            f"{len(sweep.objective)} and {len(sweep.constraint)}. Use --backend optuna."
        )
    if sweep.budget.seconds is not None or sweep.budget.network_calls is not None:
        raise UsageError(f"sweep {sweep.name}: W&B sweeps know only budget.trials. Use --backend optuna.")
    objective = sweep.objective[0]
    method = {"grid": "grid", "random": "random", "qmc": "random"}.get(sweep.sampler.name, "bayes")
    configuration: dict[str, Any] = {
        "name": sweep.name,
        "description": sweep.description,
        "method": method,
        "metric": {"name": metric_name(objective), "goal": objective.direction},
        "parameters": {name: _parameter(dim, method) for name, dim in sweep.search.items()},
    }
    if len(sweep.seeds) > 1:  # every seed is a run of its own; W&B's grouping shows their mean
        configuration["parameters"]["training.seed"] = {"values": list(sweep.seeds)}
    if sweep.budget.trials is not None:
        configuration["run_cap"] = sweep.budget.trials
    if sweep.pruner.name != "none":
        configuration["early_terminate"] = {"type": "hyperband", "min_iter": max(1, sweep.pruner.startup_trials)}
    return configuration


def metric_name(objective: Objective) -> str:
    """Name under which W&B finds the objective in a run's summary."""
    if objective.metric.startswith(TRAINING):
        return in_text(objective.metric.removeprefix(TRAINING))
    return in_text(f"eval/{objective.metric}") + ("" if objective.value == "mean" else f"/{objective.value}")


def as_wandb_yaml(plan: SweepPlan) -> str:
    """`wandb_configuration` with the command that runs a point, as YAML, for `wandb sweep FILE` and `wandb agent`.

    The base recipe, the overrides and the conditions stand in the command, as the plan in JSON.

    Raises:
        UsageError: as `wandb_configuration`.
    """
    import yaml

    text = json.dumps(plan.dump(), separators=(",", ":"))
    command = ["${env}", "python", "-m", "${program}", "sweep", "point", "--plan", text, "${args_no_hyphens}"]
    tracking = Names.of(plan.recipe.tracking)
    where = {"project": tracking.project} | ({"entity": tracking.entity} if tracking.entity else {})
    whole = {**wandb_configuration(plan), **where, "program": "amsd", "command": command}
    return str(yaml.safe_dump(whole, sort_keys=False, allow_unicode=True, width=10**6))


def _parameter(dimension: Dimension, method: str) -> dict[str, Any]:
    if dimension.low is None or dimension.high is None or method == "grid":
        return {"values": _listed(dimension)}
    low, high = dimension.low, dimension.high
    if dimension.is_int:
        name = "q_log_uniform_values" if dimension.log else "int_uniform"
        return {"distribution": name, "min": int(low), "max": int(high)} if not dimension.step else {
            "values": _listed(dimension)
        }  # fmt: skip
    if dimension.step is not None:
        return {"distribution": "q_uniform", "min": float(low), "max": float(high), "q": float(dimension.step)}
    name = "log_uniform_values" if dimension.log else "uniform"
    return {"distribution": name, "min": float(low), "max": float(high)}


def _listed(dimension: Dimension) -> list[Any]:
    """Every value, for W&B.

    Raises:
        UsageError: they are more than its file can list.
    """
    found = list(islice(values(dimension), LARGEST_GRID + 1))
    if len(found) > LARGEST_GRID:
        raise UsageError(f"W&B lists every value, but a dimension has more than {LARGEST_GRID:,}: give a larger step.")
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, int | float | str | bool | None) else str(value)
