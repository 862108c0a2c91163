"""How `amsd train --dry-run` shows a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amsd.recipe import Recipe


def show_plan(recipe: Recipe, processes: int) -> None:
    """Print what a run would train, cost and download."""
    from rich.console import Console
    from rich.table import Table

    from amsd.experiment.plan import make_plan

    plan = make_plan(recipe, processes)
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, text in plan.lines():
        table.add_row(name, text)
    Console().print(table)
