"""What must hold of a sweep before anything runs: names, metrics, machinery, every value of the search, and its inputs.

Also whether trials fit into their share of a GPU.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from itertools import islice
from typing import Any

from amsd.errors import UsageError, nearest
from amsd.evaluation.result import DIVERSITY, FID, KID, is_distance
from amsd.recipe import Problem, RecipeError
from amsd.sweep.schema import TRAINING, Objective, Sweep, SweepPlan
from amsd.sweep.search import LARGEST_GRID, Dimension, declared, ends, grid, ordered, satisfying, settings_of

_GIB = 2**30


def problems_of(plan: SweepPlan) -> list[Problem]:
    """Everything that is wrong with a sweep; the values of its search are tried only if the rest is right."""
    sweep = plan.sweep
    return [*_relations(sweep), *_metrics(plan), *_machinery(sweep)] or list(_search(plan))


def _relations(sweep: Sweep) -> Iterator[Problem]:
    """Names inside the sweep that must refer to a dimension."""
    known = list(sweep.search)
    for name, dimension in sweep.search.items():
        for parent in dimension.when:
            if parent not in sweep.search:
                yield Problem(
                    f"search.{name}.when", "names no dimension of this search", parent, nearest(parent, known)
                )
        if name.startswith("tracking.") or name == "training.seed":
            yield Problem(f"search.{name}", "is set by the sweep itself", suggestion="Use seeds for repetitions.")
    for index, point in enumerate(sweep.first):
        for name, value in point.items():
            if name not in sweep.search:
                yield Problem(f"first[{index}]", "names no dimension of this search", name, nearest(name, known))
            elif not _contains(sweep.search[name], value):
                yield Problem(f"first[{index}].{name}", "is not a value of this dimension", value)


def _contains(dimension: Dimension, value: Any) -> bool:
    try:
        declared(dimension, value)
    except ValueError:
        return False
    return True


def _metrics(plan: SweepPlan) -> Iterator[Problem]:
    """Objectives and constraints must name what a run measures."""
    recipe, sweep = plan.recipe, plan.sweep
    measured = [term.name for term in recipe.reward] + list(recipe.evaluation.metrics)
    measured += [f"{DIVERSITY}{name}" for name in recipe.evaluation.diversity]
    measured += [f"{kind}{name}" for name in recipe.evaluation.distance for kind in (KID, FID)]
    named = [(f"objective[{i}].metric", o.metric) for i, o in enumerate(sweep.objective)]
    named += [(f"constraint[{i}].metric", c.metric) for i, c in enumerate(sweep.constraint)]
    for key, metric in named:
        if not metric.startswith(TRAINING) and metric not in measured:
            yield Problem(key, "is not evaluated by the base recipe", metric, nearest(metric, measured))
    settings = [setting.name for setting in recipe.evaluation_settings]
    searched = {key for point in sweep.search.values() for v in (point.variants or {}).values() for key in v}
    fixed = not any(key.startswith(("evaluation.", "schedule.", "guidance.")) for key in {*sweep.search, *searched})
    for index, objective in enumerate(sweep.objective):
        if fixed and objective.setting is not None and objective.setting not in settings:
            problem = "is not an evaluation setting of the base recipe"
            yield Problem(
                f"objective[{index}].setting", problem, objective.setting, nearest(objective.setting, settings)
            )
        if is_distance(objective.metric):
            yield from _distance_objective(f"objective[{index}]", objective)
    labels = [objective.label for objective in sweep.objective]
    for index, label in enumerate(labels):
        if label in labels[:index]:
            yield Problem(f"objective[{index}]", "the same objective is listed twice", label)


def _distance_objective(key: str, objective: Objective) -> Iterator[Problem]:
    """A distance to the base model is better if it is smaller, and the base itself has none to be paired with."""
    if objective.direction == "maximize":
        yield Problem(f"{key}.direction", "would move away from the base model", "maximize", 'Use "minimize".')
    if objective.value == "difference":
        yield Problem(f"{key}.value", "a distance to the base model is a comparison already", "difference",
                      'Use "mean".')  # fmt: skip


def _machinery(sweep: Sweep) -> Iterator[Problem]:
    """Sampler, pruner and budget must fit the objectives and the space."""
    if sweep.pruner.name != "none" and len(sweep.objective) > 1:
        yield Problem("pruner.name", "only a single objective can be pruned", sweep.pruner.name, 'Use "none".')
    budget = sweep.budget
    endless = budget.trials is None and budget.seconds is None and budget.network_calls is None
    if endless and sweep.sampler.name != "grid":
        yield Problem("budget", "is required: trials, seconds or network_calls (only a grid ends by itself)")
    if sweep.sampler.name == "grid" and budget.trials is None and _is_larger(sweep, LARGEST_GRID):
        yield Problem("sampler.name", f"this grid has more than {LARGEST_GRID:,} points", "grid",
                      "Use larger steps or fewer points, or limit the trials with budget.trials.")  # fmt: skip
    if sweep.execution.lost_after_seconds < 2 * sweep.execution.heartbeat_seconds:
        yield Problem("execution.lost_after_seconds", "must be at least twice execution.heartbeat_seconds",
                      sweep.execution.lost_after_seconds)  # fmt: skip


def _is_larger(sweep: Sweep, limit: int) -> bool:
    try:
        return next(islice(grid(sweep.search), limit, None), None) is not None
    except ValueError:  # conditions in a circle: `_search` tells
        return False


def _ends(plan: SweepPlan) -> list[dict[str, Any]]:
    """Points that together have every choice and both ends of every range, and the points tried first.

    Raises:
        ValueError: a condition is never fulfilled, or conditions go round in a circle.
    """
    search = plan.sweep.search
    ordered(search)
    parents = {name: satisfying(search, name) for name in search}
    points = [{**parents[name], name: value} for name, dim in search.items() for value in ends(dim)]
    return [*points, *(dict(first) for first in plan.sweep.first)]


def _search(plan: SweepPlan) -> Iterator[Problem]:
    """Resolve sample recipes: every choice and both ends of every range must be a valid value of a valid key."""
    sweep = plan.sweep
    try:
        points = _ends(plan)
    except ValueError as error:
        yield Problem("search", str(error))
        return
    seen: set[str] = set()
    for point in points:
        try:
            plan.resolve(settings_of(sweep.search, point))
        except RecipeError as error:
            for problem in error.problems:
                if str(problem) not in seen:
                    seen.add(str(problem))
                    yield Problem(f"search: {problem.key}", problem.message, problem.value, problem.suggestion)


def require_inputs(plan: SweepPlan, download: bool = True) -> list[str]:
    """Check what the trials will read, before the first of them starts: rewards, prompts and the model's files.

    Prompts of the hub are checked only where they may be downloaded. Returns notices, those that training would give.

    Raises:
        UsageError: a scorer is unknown, or a prompt file or a model is not there, or training would refuse the model;
            the way out is named.
    """
    from amsd.experiment.inputs import check_inputs
    from amsd.recipe.rules import warnings
    from amsd.tracking.backend import absent

    checked: set[str] = set()
    notices: dict[str, None] = {}
    for recipe in [plan.recipe, *(plan.resolve(settings_of(plan.sweep.search, point)) for point in _ends(plan))]:
        notices |= dict.fromkeys([*map(str, warnings(recipe)), *absent(recipe.tracking.trackers)])
        inputs = (recipe.model, recipe.prompts, recipe.reward, recipe.evaluation.metrics)
        if repr(inputs) not in checked:
            checked.add(repr(inputs))
            try:
                found = check_inputs(recipe, download)
                notices |= dict.fromkeys(found.remarks(recipe))
                # The embedded models are sound, and torch takes seconds.
                if not recipe.model.pretrained.startswith("embedded:") or recipe.model.start is not None:
                    from amsd.experiment.examine import examine

                    notices |= dict.fromkeys(examine(recipe, found))
            except UsageError as error:
                raise UsageError(f"sweep {plan.sweep.name}: {error}") from None
    return list(notices)


def memory_lines(plan: SweepPlan) -> Iterator[str]:
    """What a trial of the base recipe needs of a GPU and, where GPUs are visible, whether its share holds that."""
    needed = needed_bytes(plan)
    if needed is None:
        return
    yield (
        f"Memory: {needed / _GIB:.1f} GiB per process for weights, gradients and optimizer of the base recipe; "
        "activations come on top."
    )
    sizes = gpu_bytes()
    share = plan.sweep.execution.gpus
    if not sizes or share == 0:
        return
    part = min(1.0, share if share is not None else 1.0)
    room = part * min(sizes)
    if needed > room:
        way = "Set execution.gpus = 1." if part < 1 and needed <= min(sizes) else (
            "Use a smaller parameterization or precision (amsd train RECIPE --dry-run shows what takes it)."
        )  # fmt: skip
        yield f"That does not fit: a trial's share of the smallest GPU here is {room / _GIB:.1f} GiB. {way}"


def needed_bytes(plan: SweepPlan) -> float | None:
    """Bytes on each device by the base recipe's own plan; None if the model is neither known nor at hand."""
    from amsd.experiment.plan import make_plan

    try:
        return make_plan(plan.recipe, plan.sweep.execution.processes).memory_bytes
    except UsageError:
        return None


def gpu_bytes() -> list[int]:
    """Memory of each GPU of this machine, as its driver says; torch is not imported for it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return [int(mebibytes) * 2**20 for mebibytes in listed if mebibytes.isdecimal()]
