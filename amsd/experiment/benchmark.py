"""`amsd eval --table`: the published protocol on one set of weights and on the base model, as files and in W&B."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from amsd.evaluation.benchmark import Benchmark
from amsd.evaluation.result import EvaluationResult
from amsd.experiment.evaluate import standalone
from amsd.experiment.models import load_model
from amsd.experiment.results import evaluator_of
from amsd.experiment.setup import build_accelerator
from amsd.recipe import Recipe
from amsd.tracking.connection import connect
from amsd.tracking.names import Names
from amsd.training import processes

_LOG = logging.getLogger(__name__)


def benchmark(recipe: Recipe, checkpoint: Path | None, folder: Path, model: str | None = None) -> list[Path]:
    """Evaluate, write the table and every result under `folder`, and return the table's files (JSON, CSV, Markdown).

    Besides the base: a checkpoint, or anybody's `model`.

    Raises:
        UsageError, RunError: see `Evaluator`.
    """
    base, tuned, name = _evaluated(recipe, checkpoint, model)
    table = Benchmark.of(recipe, base, tuned, name, trained=model is None)
    if processes.rank() != 0:
        return []
    for kind, results in (("base", base), ("finetuned", tuned)):
        for result in results:
            result.save(folder / kind)
    files = table.save(folder)
    _log_to_wandb(recipe, table, folder)
    return files


def _evaluated(
    recipe: Recipe, checkpoint: Path | None, model: str | None
) -> tuple[Sequence[EvaluationResult], Sequence[EvaluationResult], str]:
    """Results of the base and of what is compared with it, and the latter's name."""
    if model is not None:
        evaluator, device = evaluator_of(recipe), build_accelerator(recipe).device
        base = load_model(recipe.model.pretrained, recipe.model, device).evaluated(evaluator)
        return base, load_model(model, recipe.model, device).evaluated(evaluator, base), model
    evaluation = standalone(recipe)
    if checkpoint is None:
        return evaluation.base, (), ""
    name = f"{checkpoint.absolute().parent.parent.name}/{checkpoint.name}"
    return evaluation.base, evaluation.of_checkpoint(checkpoint), name


def _log_to_wandb(recipe: Recipe, table: Benchmark, folder: Path) -> None:
    """The same table as a W&B run of its own, unless tracking is disabled."""
    if recipe.tracking.mode == "disabled" or "wandb" not in recipe.tracking.trackers:
        return
    import wandb

    try:
        names = Names.of(recipe.tracking)
        connection = connect(recipe.tracking.mode)
        if connection.mode == "disabled":
            return
        with wandb.init(
            project=names.project, entity=names.entity, group=names.group, tags=names.tags, notes=names.notes,
            job_type="benchmark", mode=connection.mode, dir=folder, config=recipe.model_dump(mode="json"),
        ) as run:  # fmt: skip
            run.log({"benchmark": wandb.Table(columns=table.columns(), data=table.values(), allow_mixed_types=True)})
    except wandb.Error as error:
        _LOG.warning("the table could not be logged to W&B (its files are complete): %s", error)
