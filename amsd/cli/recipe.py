"""`amsd recipe list|show|check|schema`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from amsd.cli.options import RecipeArgument, SetOption

if TYPE_CHECKING:
    from amsd.recipe import Recipe

app = typer.Typer(help="Look at recipes and check them.", no_args_is_help=True)


@app.command("list")
def list_recipes() -> None:
    """Recipes that ship with amsd."""
    from rich.console import Console
    from rich.table import Table

    from amsd.recipe import load_recipe
    from amsd.recipe.catalogue import names

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("recipe", "model", "method", "reward", "cfg"):
        table.add_column(column, overflow="fold")
    for name in names("recipes"):
        recipe = load_recipe(name)
        rewards = " + ".join(term.name for term in recipe.reward)
        model = recipe.model.pretrained.rpartition("/")[2]
        table.add_row(name, model, f"{recipe.method.name}, {recipe.model.parameterization}", rewards,
                      f"{recipe.guidance.guidance_scale:g}")  # fmt: skip
    Console().print(table)


@app.command()
def show(
    recipe: RecipeArgument,
    assignments: SetOption = None,
    comments: Annotated[bool, typer.Option(help="Say above each key what it means.")] = True,
) -> None:
    """Print a recipe with every key, as TOML that runs again."""
    from amsd.recipe import dump_toml, load_recipe
    from amsd.recipe.comments import with_comments

    resolved = load_recipe(recipe, assignments or [])
    typer.echo(with_comments(resolved) if comments else dump_toml(resolved), nl=False)


@app.command()
def check(recipe: RecipeArgument, assignments: SetOption = None) -> None:
    """Check a recipe: every problem at once, with key, value and the nearest valid name."""
    from amsd.recipe import identity, load_recipe
    from amsd.recipe.rules import warnings
    from amsd.rewards.table import require_known
    from amsd.tracking.backend import require_known_trackers

    resolved = load_recipe(recipe, assignments or [])
    for warning in warnings(resolved):
        typer.echo(f"Warning: {warning}", err=True)
    require_known([term.name for term in resolved.reward], resolved.evaluation)
    require_known_trackers(resolved.tracking.trackers)
    for note in _notes(resolved):
        typer.echo(f"Note: {note}", err=True)
    typer.echo(f"{recipe}: ok, identity {identity(resolved)}")


def _notes(recipe: Recipe) -> Iterator[str]:
    """What a run will stumble over on this machine. The recipe is sound; another machine may be the one that trains."""
    from amsd.prompts import load_prompts
    from amsd.recipe.schema import only_path
    from amsd.rewards.table import unchecked

    advice = unchecked([term.name for term in recipe.reward], recipe.evaluation.metrics)
    if advice is not None:
        yield advice
    model = recipe.model
    if (model.is_single_file or only_path(model.pretrained)) and not Path(model.pretrained).expanduser().exists():
        yield f"model.pretrained: nothing at {model.pretrained} on this machine."
    counts = {}
    for source, split in ((recipe.prompts.train, "train"), (recipe.prompts.evaluation, "evaluation")):
        if isinstance(source, str) and source.startswith("hub:"):
            continue  # checked when it is downloaded
        if _absent(source):
            yield f"{source}: no such prompt file on this machine."
            continue
        found = load_prompts(source, split)  # type: ignore[arg-type]
        counts[split] = len(found)
        yield from found.remarks
    wanted = recipe.evaluation.prompts
    if wanted is not None and counts.get("evaluation", wanted) < wanted:
        yield f"evaluation.prompts = {wanted}, but there are {counts['evaluation']} evaluation prompts."


def _absent(source: str | Sequence[str]) -> bool:
    """Whether this is the path of a prompt file, and there is none."""
    from amsd.prompts.load import EMBEDDED
    from amsd.prompts.readers import READERS

    if not isinstance(source, str) or source.startswith(EMBEDDED):
        return False
    path = Path(source).expanduser()
    return path.suffix.lower() in READERS and not path.exists()


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors (`#:schema` in a TOML file)."""
    from amsd.recipe.json_schema import schema_text

    typer.echo(schema_text(), nl=False)
