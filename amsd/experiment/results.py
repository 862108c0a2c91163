"""What every evaluation shares, of a training or on its own: its evaluator, its files, its comparison of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from amsd.evaluation.evaluator import Evaluator
from amsd.evaluation.pictures import save_image, save_pictures, side_by_side
from amsd.evaluation.result import EvaluationResult
from amsd.prompts import load_prompts
from amsd.recipe import Recipe
from amsd.tracking.progress import Report


def evaluator_of(recipe: Recipe, progress: Report | None = None) -> Evaluator:
    """Everything that an evaluation outside of a training needs but the model.

    Raises:
        UsageError: prompts or scorers cannot be loaded.
    """
    prompts = load_prompts(recipe.prompts.evaluation, "evaluation", recipe.prompts.column).texts
    return Evaluator.for_recipe(recipe, prompts, progress=progress)


def write_results(results: Sequence[EvaluationResult], files: Path, samples: Path) -> Mapping[str, Path]:
    """Write result files and pictures; returns the grid of each setting that has one."""
    grids = {}
    for result in results:
        result.save(files)
        folder = save_pictures(result, samples)
        if folder is not None:
            grids[result.name] = folder / "grid.png"
    return grids


def compare_pictures(base: Sequence[EvaluationResult], results: Sequence[EvaluationResult], folder: Path) -> None:
    """Write `comparison.png` of the first setting: a sample of each kept prompt, base above the model, same noise."""
    if not base or not results:
        return
    own, other = base[0].pictures, results[0].pictures
    if own is not None and other is not None and len(own):
        save_image(side_by_side(own[:, 0], other[:, 0], results[0].prompts), folder / "comparison.png")
