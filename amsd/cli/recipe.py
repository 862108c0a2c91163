"""`amsd recipe list|show|check|schema`."""

from __future__ import annotations

from typing import Annotated

import typer

from amsd.cli.options import RecipeArgument, SetOption
from amsd.cli.outputs import warn

app = typer.Typer(help="Look at recipes and check them.", no_args_is_help=True)


@app.command("list")
def list_recipes() -> None:
    """List the recipes that ship with amsd."""
    from rich.console import Console
    from rich.table import Table

    from amsd.recipe import load_recipe
    from amsd.recipe.catalog import names

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("recipe", "model", "method", "reward", "cfg"):
        table.add_column(column, overflow="fold")
    for name in names("recipes"):
        recipe = load_recipe(name)
        rewards = " + ".join(term.name for term in recipe.reward)
        model = recipe.model.pretrained.rpartition("/")[2]
        table.add_row(name, model, f"{recipe.method.name}, {recipe.model.parameterization}", rewards,
                      f"{recipe.guidance.guidance_scale:g}")  # fmt: skip
    Console(markup=False).print(table)


@app.command()
def show(
    recipe: RecipeArgument,
    assignments: SetOption = None,
    comments: Annotated[bool, typer.Option(help="Explain each key in a comment above it.")] = True,
) -> None:
    """Print a recipe with every key, as TOML that runs again."""
    from amsd.recipe import dump_toml, load_recipe
    from amsd.recipe.comments import with_comments

    resolved = load_recipe(recipe, assignments or [])
    typer.echo(with_comments(resolved) if comments else dump_toml(resolved), nl=False)


@app.command()
def check(recipe: RecipeArgument, assignments: SetOption = None) -> None:
    """Check a recipe and all that it names on this machine.

    Every problem is told at once, with its key, its value and the nearest valid name.
    """
    from amsd.experiment.inputs import check_inputs, remarks
    from amsd.recipe import identity, load_recipe
    from amsd.rewards.table import unchecked

    resolved = load_recipe(recipe, assignments or [])
    inputs = check_inputs(resolved, download=False)
    from amsd.experiment.examine import examine

    warn([*remarks(resolved, inputs), *examine(resolved, inputs)])
    advice = unchecked([term.name for term in resolved.reward], resolved.evaluation.metrics)
    if advice is not None:
        typer.echo(f"Note: {advice}", err=True)
    typer.echo(f"{recipe}: ok, identity {identity(resolved)}")


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors.

    An editor reads its place from a line `#:schema FILE` in a recipe.
    """
    from amsd.recipe.json_schema import schema_text

    typer.echo(schema_text(), nl=False)
