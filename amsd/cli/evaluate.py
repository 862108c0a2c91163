"""`amsd eval`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from amsd.cli.options import CheckpointArgument, RecipeOption, SetOption
from amsd.cli.source import resolve

if TYPE_CHECKING:
    from amsd.evaluation.result import EvaluationResult


def evaluate(
    checkpoint: CheckpointArgument,
    recipe: RecipeOption = None,
    assignments: SetOption = None,
    watch: Annotated[
        Path | None, typer.Option("--watch", metavar="RUN_DIR", help="Evaluate checkpoints of this run as they appear.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    table: Annotated[
        Path | None,
        typer.Option("--table", metavar="DIR", help="Follow the reference's protocol; write its table to this folder."),
    ] = None,
) -> None:
    """Evaluate a checkpoint, or the base model, on the recipe's evaluation prompts with common noise."""
    if watch is not None:
        from amsd.experiment.evaluate import watch_run

        for step, results in watch_run(watch, recipe, assignments or []):
            _show(results, as_json, f"step {step}")
        return
    if table is not None:
        _benchmark(checkpoint, recipe, assignments or [], table)
        return
    source = resolve(checkpoint, recipe, assignments or [])
    from amsd.experiment.evaluate import evaluate_source

    _show(evaluate_source(source.recipe, source.checkpoint), as_json, checkpoint)


def _benchmark(checkpoint: str, recipe: str | None, assignments: Sequence[str], folder: Path) -> None:
    from amsd.evaluation.benchmark import PROTOCOL

    source = resolve(checkpoint, recipe, [*PROTOCOL, *assignments])
    from amsd.experiment.benchmark import benchmark

    for path in benchmark(source.recipe, source.checkpoint, folder):
        typer.echo(path)


def _show(results: Sequence[EvaluationResult], as_json: bool, title: str) -> None:
    from rich.console import Console

    from amsd.evaluation.table import results_table

    if as_json:
        typer.echo(json.dumps({result.name: result.to_json() for result in results}, allow_nan=False))
    else:
        Console().print(results_table(results, title=title))
