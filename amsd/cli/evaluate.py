"""`amsd eval`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from amsd.cli.options import AllowCodeOption, ModelArgument, RecipeOption, SetOption
from amsd.cli.outputs import path_option, place_option, require_folder
from amsd.cli.source import Source, require_consent, resolve_model, with_base
from amsd.ends import keeping
from amsd.errors import UsageError
from amsd.occupied import require_lasting

if TYPE_CHECKING:
    from amsd.evaluation.result import EvaluationResult
    from amsd.recipe import Recipe

NO_BASE = "none"
"""Value of `--base` that evaluates a model alone."""
_KEPT = "What it has evaluated to the end is kept: run the same command again for the rest."
_OF_A_RUN = "results lie in the run. Make it writable, or evaluate a copy of it."


def evaluate(
    checkpoint: ModelArgument,
    recipe: RecipeOption = None,
    assignments: SetOption = None,
    base: Annotated[
        str | None,
        place_option(
            "--base",
            metavar="MODEL|none",
            help="Model to compare with [default: the recipe's, or the run's own base].",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        path_option("--output", "-o", help="Folder for a model's results [default: evaluations/NAME-WEIGHTS]."),
    ] = None,
    watch: Annotated[
        Path | None, path_option("--watch", metavar="RUN_DIR", help="Evaluate checkpoints of this run as they appear.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    table: Annotated[
        Path | None,
        path_option(
            "--table", metavar="DIR", help="Evaluate by the reference's protocol; write the table to this folder."
        ),
    ] = None,
    allow_code: AllowCodeOption = False,
) -> None:
    """Evaluate a checkpoint, or any model, on the recipe's evaluation prompts, paired with a base on common noise."""
    changes = assignments or []
    with keeping(lambda: _KEPT):
        if watch is not None:
            _watch(watch, recipe, changes, as_json, allow_code)
        elif table is not None:
            require_folder(table, "--table")
            require_lasting(table, "--table")
            _benchmark(checkpoint, recipe, changes, base, table, allow_code)
        else:
            _one(checkpoint, recipe, changes, base, output, as_json, allow_code)


def _one(
    given: str,
    recipe: str | None,
    assignments: list[str],
    base: str | None,
    output: Path | None,
    as_json: bool,
    allow_code: bool,
) -> None:
    """Evaluate a checkpoint or a model, which was `given` by its name."""
    if output is not None:
        require_folder(output, "--output")
        require_lasting(output, "--output")
    source = resolve_model(given, recipe, assignments)
    _consent(source, None, allow_code, recipe)
    if source.checkpoint is None:
        _model(source, given, base, output, as_json)
        return
    if output is not None:
        raise UsageError("--output is for models: the results of a checkpoint go into its own folder.")
    _checkpoint(source.recipe, source.checkpoint, given, _required(base), as_json)


def _watch(run: Path, recipe: str | None, assignments: list[str], as_json: bool, allow_code: bool) -> None:
    require_folder(run, "--watch", _OF_A_RUN)
    from amsd.experiment.evaluate import watch_run
    from amsd.recipe import load_recipe

    file = recipe or str(run / "recipe.toml")
    _consent(Source(load_recipe(file, assignments)), run, allow_code, file)
    for step, results in watch_run(run, recipe, assignments):
        _show(results, as_json, f"step {step}")


def _checkpoint(recipe: Recipe, folder: Path, given: str, base: str | None, as_json: bool) -> None:
    """Evaluate a checkpoint, which was `given` by its own name or by that of its run."""
    from amsd.tracking.progress import loading, progress

    with loading():
        from amsd.experiment.evaluate import evaluate_checkpoint

    require_folder(folder / "evaluation", "The results'", _OF_A_RUN)
    with progress() as report:
        found = evaluate_checkpoint(recipe, folder, base, report)
    _show(found, as_json, given if folder.name in given else f"{given} ({folder.name})")


def _model(source: Source, given: str, base: str | None, output: Path | None, as_json: bool) -> None:
    """Evaluate a model that is no checkpoint of amsd, or the recipe's base."""
    from amsd.tracking.progress import loading, progress

    with loading():
        from amsd.experiment.models import FOLDER, evaluate_model

    if output is None:
        require_folder(Path(FOLDER), "The results'", "name another one with --output.")
    own = with_base(source.recipe, None if base == NO_BASE else base)
    target = own.model.pretrained if source.model is None else source.model
    with progress() as report:
        results, folder = evaluate_model(own, target, source.model is not None and base != NO_BASE, output, report)
    _show(results, as_json, given)
    typer.echo(f"Results: {folder}", err=as_json)


def _required(base: str | None) -> str | None:
    if base == NO_BASE:
        raise UsageError(f"--base {NO_BASE}: a checkpoint is always paired with a base; leave the option out.")
    return base


def _consent(source: Source, run: Path | None, allowed: bool, recipe: str | None) -> None:
    """Scorers of a recipe run when it evaluates: only those that are the user's own do so without being allowed."""
    if run is None and source.checkpoint is not None:
        run = source.checkpoint.parent.parent
    file = str(Path(source.model) / "recipe.toml") if recipe is None and source.model is not None else recipe
    require_consent(source.recipe, run, allowed, own=False, file=file)


def _benchmark(
    checkpoint: str, recipe: str | None, assignments: Sequence[str], base: str | None, folder: Path, allow_code: bool
) -> None:
    from amsd.evaluation.benchmark import PROTOCOL

    source = resolve_model(checkpoint, recipe, [*PROTOCOL, *assignments])
    _consent(source, None, allow_code, recipe)
    if source.checkpoint is not None and base is not None:
        raise UsageError("--table compares a checkpoint with the model it began from; leave --base out.")
    from amsd.experiment.benchmark import benchmark

    for path in benchmark(with_base(source.recipe, base), source.checkpoint, folder, source.model):
        typer.echo(path)


def _show(results: Sequence[EvaluationResult], as_json: bool, title: str) -> None:
    from rich.console import Console

    from amsd.evaluation.table import results_table

    if as_json:
        typer.echo(json.dumps({result.name: result.to_json() for result in results}, allow_nan=False))
    else:
        Console(markup=False).print(results_table(results, title=title))
