"""What `amsd sweep run --dry-run` says: how large a sweep is and what its trainings cost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from amsd.recipe.cost import training_cost
from amsd.sweep.load import Plan
from amsd.sweep.points import make_point
from amsd.sweep.study import points_to_queue


def outline(plan: Plan) -> Iterator[str]:
    """Lines of text: points, seeds, cost of the trainings, budget.

    Raises:
        RecipeError: a point of the grid or one of the first points cannot be run.
    """
    sweep, budget = plan.sweep, plan.sweep.budget
    queued = [make_point(plan, Path(), number, params) for number, params in enumerate(points_to_queue(plan))]
    is_grid = sweep.sampler.name == "grid"
    count = len(queued) if is_grid else budget.trials or len(queued)
    endless = not is_grid and budget.trials is None
    yield (
        f"{sweep.name}: {_counted(count, 'point')} x {_counted(len(sweep.seeds), 'seed')}"
        f"{', then more until its budget ends' if endless else ''}"
    )
    costs = {point.key: point.cost for point in queued}
    if len(costs) < len(queued):
        yield f"Copies of other points, which take over their results: {len(queued) - len(costs)}."
    if not endless:
        drawn = count - len(queued)  # what a sampler will draw is unknown: counted as the base recipe
        total = sum(costs.values())
        total += drawn * len(sweep.seeds) * training_cost(plan.recipe, sweep.execution.processes)
        yield (
            f"Training: {'about ' if drawn else ''}{total:,.0f} UNet forward-equivalents if every trial runs to its "
            "end; evaluation comes on top."
        )
    if budget.unet_evaluations is not None:
        yield f"Budget: {budget.unet_evaluations:,.0f} UNet forward-equivalents."
    if budget.seconds is not None:
        yield f"Budget: {budget.seconds:,.0f} s."


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
