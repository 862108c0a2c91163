"""How `amsd train --dry-run` shows a plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from amsd.cli.outputs import warn

if TYPE_CHECKING:
    from amsd.recipe import Recipe


def show_plan(recipe: Recipe, processes: int, output: Path) -> None:
    """Print what a run would train, cost and download.

    Raises:
        UsageError: the run would not start: something is missing or wrong, or (after the plan) the disk is too full.
    """
    from rich.console import Console
    from rich.table import Table

    from amsd.experiment.inputs import check_inputs, remarks, require_space

    inputs = check_inputs(recipe, download=False)
    from amsd.diffusion.blueprint import blueprint
    from amsd.experiment.examine import examine
    from amsd.experiment.plan import make_plan
    from amsd.experiment.rehearsal import can_try, rehearse

    found = blueprint(recipe.model)
    examined = examine(recipe, inputs, found)
    plan = make_plan(recipe, processes, found)
    warn([*remarks(recipe, inputs), *examined])
    if can_try(recipe, processes):
        plan = replace(plan, rehearsal=rehearse(recipe))
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, text in plan.lines():
        table.add_row(name, text)
    Console(markup=False).print(table)
    require_space(output, plan.checkpoint_bytes, recipe)  # last: a plan for another machine is of use too
