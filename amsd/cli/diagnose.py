"""`amsd diagnose`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from amsd.cli.options import RecipeArgument, SetOption


def diagnose(
    recipe: RecipeArgument,
    assignments: SetOption = None,
    pairs: Annotated[int, typer.Option(min=2, help="Rollouts per prompt that share their initial noise.")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Say whether the theory holds for a recipe's model, schedule and reward."""
    from amsd.recipe import load_recipe

    resolved = load_recipe(recipe, assignments or [])
    from rich.console import Console
    from rich.table import Table

    from amsd.experiment.diagnose import diagnose as run

    findings = run(resolved, pairs)
    if as_json:
        typer.echo(json.dumps([finding.to_json() for finding in findings]))
        return
    table = Table("diagnosis", "value", "limit", "", "what it means", header_style="bold")
    for finding in findings:
        mark = "[green]ok[/]" if finding.passed else "[yellow]warning[/]"
        table.add_row(finding.name, f"{finding.value:.3g}", f"{finding.limit:g}", mark, finding.verdict)
    Console().print(table)
