"""What a `CHECKPOINT` or `MODEL|base` argument and `--recipe` mean together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from amsd.errors import UsageError

if TYPE_CHECKING:
    from amsd.recipe import Recipe

BASE = "base"


@dataclass(frozen=True)
class Source:
    """What a command is about, and the recipe that it is used with.

    A checkpoint; or anybody's model (a folder, file or hub id); or the recipe's own model where both are None.
    """

    recipe: Recipe
    checkpoint: Path | None = None
    model: str | None = None


def resolve(source: str, recipe: str | None, assignments: Sequence[str]) -> Source:
    """Find the checkpoint and its recipe; where a run is named, say which of its checkpoints that is.

    Raises:
        UsageError: either is absent or wrong.
    """
    from amsd.recipe import load_recipe
    from amsd.run_directory import recipe_of, resolve_checkpoint

    if source == BASE:
        return Source(load_recipe(recipe or "shapes", assignments))
    checkpoint = resolve_checkpoint(Path(source))
    if checkpoint != Path(source):
        typer.echo(f"Checkpoint: {checkpoint}", err=True)
    return Source(load_recipe(recipe or recipe_of(checkpoint), assignments), checkpoint)


def resolve_model(source: str, recipe: str | None, assignments: Sequence[str], drawing: bool = False) -> Source:
    """As `resolve`, for anybody's model too: a diffusers folder, a single file, a LoRA file or a hub id.

    A model's recipe is the one given, or the `recipe.toml` in its folder (an export of amsd has one). For `drawing` the
    defaults of a recipe do as well.

    Raises:
        UsageError: nothing is there, or an evaluation has no recipe.
    """
    from amsd.hub import PREFIX
    from amsd.recipe import load_recipe
    from amsd.recipe.schema import only_path
    from amsd.run_directory import RunDirectory

    path = Path(source).expanduser()
    run = RunDirectory(path)
    checkpoint = path.name in ("best", "latest") or (path / "manifest.json").is_file()
    if source == BASE or checkpoint or run.checkpoints.is_dir() or run.metrics.is_file():
        return resolve(source, recipe, assignments)
    if not path.exists() and not source.startswith(PREFIX) and (only_path(source) or "/" not in source):
        raise UsageError(
            f"{source}: no such run, checkpoint, folder or file (a model on the hub is OWNER/NAME, one file of it "
            "hub:OWNER/NAME/FILE)"
        )
    own = path / "recipe.toml"
    if recipe is None and own.is_file():
        return Source(load_recipe(own, assignments), model=source)
    if recipe is None and not drawing:
        raise UsageError(
            f"{source} is a model without a recipe: give one with --recipe. Its [evaluation] says which prompts, "
            "samplers and scorers to use, and its model is the base that this one is paired with (--base names "
            "another)."
        )
    return Source(load_recipe(recipe, assignments) if recipe else _defaults(source, assignments), model=source)


def with_base(recipe: Recipe, base: str | None) -> Recipe:
    """The recipe with another model as its own; revision and variant belong to the one that is replaced."""
    if base is None or base == recipe.model.pretrained:
        return recipe
    own = {"pretrained": base, "revision": None, "variant": None}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=own)})


def _defaults(model: str, assignments: Sequence[str]) -> Recipe:
    """A recipe that draws with a model: all keys at their defaults."""
    from amsd.recipe import from_dict, parse_assignment
    from amsd.recipe.load import assign

    tree: dict[str, Any] = {"model": {"pretrained": model}, "reward": [{"name": "brightness"}]}
    for assignment in assignments:
        assign(tree, *parse_assignment(assignment))
    return from_dict(tree, source="--set")


def require_consent(
    recipe: Recipe, run: Path | None, allowed: bool, *, own: bool = True, file: str | None = None
) -> None:
    """Refuse code and reward servers that a received run or recipe names; announce nothing and import nothing.

    Args:
        recipe: what is about to be used.
        run: the run directory that it belongs to, whose recipe recorded the code at training; None for a recipe alone.
        allowed: whether the user said --allow-code.
        own: whether a recipe that no run wrote counts as the user's own.
        file: where the recipe was read from; one that lies in a run is that run's, whatever it says of itself.

    Raises:
        UsageError: see `amsd.rewards.code.require_consent`.
    """
    from amsd.recipe.load import read_run
    from amsd.rewards import code

    received = _run_of(file)
    servers_of_own = own and recipe.origin is None and received is None  # a recipe that the user wrote
    run = run or received
    written = run is not None and (run / "recipe.toml").is_file()
    if own and not written and recipe.origin is None:
        return
    record = read_run(run / "recipe.toml").code if written and run is not None else recipe.code
    places = [run, recipe.origin, None if file is None else Path(file).parent]
    code.require_consent(
        recipe, record, [Path(place) for place in places if place is not None], allowed, servers_of_own
    )


def _run_of(file: str | None) -> Path | None:
    """The run directory that a `recipe.toml` lies in, or None."""
    from amsd.run_directory import RunDirectory

    path = Path(file or "")
    if path.name != "recipe.toml":
        return None
    homes = (path.parent, path.parent.parent.parent)  # a checkpoint has a copy
    return next((home for home in homes if RunDirectory(home).checkpoints.is_dir()), None)
