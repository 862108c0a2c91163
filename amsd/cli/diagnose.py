"""`amsd diagnose`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from amsd.cli.options import AllowCodeOption, RecipeArgument, SetOption


def diagnose(
    recipe: RecipeArgument,
    assignments: SetOption = None,
    pairs: Annotated[
        int,
        typer.Option(
            min=2, max=10_000, help="Pairs of samples per prompt; the two of a pair share their initial noise."
        ),
    ] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    allow_code: AllowCodeOption = False,
) -> None:
    """Measure whether a recipe meets the assumptions of the theory: model, schedule and reward."""
    from amsd.cli.source import require_consent
    from amsd.recipe import load_recipe

    resolved = load_recipe(recipe, assignments or [])
    require_consent(resolved, None, allow_code, own=False, file=recipe)
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from amsd.tracking.progress import loading, progress

    with loading():
        from amsd.experiment.diagnose import diagnose as run

    with progress() as report:
        findings = run(resolved, pairs, report)
    if as_json:
        typer.echo(json.dumps([finding.to_json() for finding in findings]))
        return
    # Name and verdict share a column: side by side, 80 terminal columns would cut the one and break the other.
    table = Table("diagnosis", header_style="bold", show_lines=True)
    for column in ("value", "limit"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    for finding in findings:
        said = Text.assemble((finding.name, "bold"), "\n", finding.verdict)
        mark = Text("ok", "green") if finding.passed else Text("warning", "yellow")
        limit = f"{finding.least:g} to {finding.limit:g}" if finding.least is not None else f"{finding.limit:g}"
        table.add_row(said, f"{finding.value:.3g}", limit, mark)
    Console(markup=False).print(table)
