"""The README.md of an export: what the model is, how it was made, what it scores and how to load it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from amsd.evaluation.result import EvaluationResult, saved_results
from amsd.evaluation.statistics import measured
from amsd.recipe import Recipe, dump_toml, identity
from amsd.run_directory import RunDirectory

CARD = "README.md"
GRID = "samples.png"

#: Licences that the publishers of the scorers' weights state.
_LICENCES = {
    "imagereward": "Apache-2.0", "clip-score": "MIT", "pickscore": "MIT", "hps-v2.1": "Apache-2.0",
    "laion-aesthetic": "Apache-2.0", "pyiqa": "pyiqa is PolyForm-Noncommercial; weights vary", "shapes": "MIT",
}  # fmt: skip


def write_card(folder: Path, recipe: Recipe, checkpoint: Path) -> None:
    """Write `README.md`, and `samples.png` where the checkpoint has a grid of samples, into an export's folder."""
    grid = _grid(recipe, checkpoint)
    if grid is not None:
        shutil.copyfile(grid, folder / GRID)
    text = "\n".join(_lines(recipe, checkpoint, grid is not None))
    (folder / CARD).write_text(text, encoding="utf-8")


def _lines(recipe: Recipe, checkpoint: Path, pictures: bool) -> Iterator[str]:
    base, lora = recipe.model.pretrained, recipe.model.parameterization == "lora"
    rewards = ", ".join(term.name for term in recipe.reward)
    local = base.startswith("embedded:") or recipe.model.is_single_file or Path(base).expanduser().exists()
    hub = base.count("/") == 1 and not local
    yield from ("---", "library_name: diffusers", "pipeline_tag: text-to-image")
    if hub:
        yield f"base_model: {json.dumps(base)}"
    yield from ("tags:", "- adjoint-matching", "- reward-fine-tuning", "---", "")
    yield from (f"# {Path(base).name or base} fine-tuned on {rewards}", "")
    yield f"Fine-tuned with amsd by Adjoint Matching; {checkpoint.name}, recipe {identity(recipe)}."
    if pictures:
        yield from ("", f"![Samples: a prompt per row]({GRID})")
    yield from ("", "## How to load", "", "```python", "from diffusers import DiffusionPipeline", "")
    yield from ('pipeline = DiffusionPipeline.from_pretrained("THIS_FOLDER_OR_REPOSITORY")', "")
    yield f'image = pipeline("a prompt", guidance_scale={recipe.guidance.guidance_scale:g}).images[0]'
    yield "```"
    if lora:
        yield from ("", "`pytorch_lora_weights.safetensors` is the same change as a LoRA file for `load_lora_weights`.")
    yield from _metrics(recipe, checkpoint)
    yield from ("", "## Licences", "")
    yield f"- Base model: `{base}`. Its licence, and its restrictions of use, hold for this model."
    for term in recipe.reward:
        licence = _LICENCES.get(term.name) or _LICENCES.get(term.name.partition(":")[0], "see its publisher")
        yield f"- Reward `{term.name}`: {licence} (as its publisher states it)."
    yield from ("", "## Recipe", "", "```toml", dump_toml(recipe).rstrip(), "```", "")


def _metrics(recipe: Recipe, checkpoint: Path) -> Iterator[str]:
    for result in _results(recipe, checkpoint):
        yield from ("", f"## Metrics under {result.name}", "")
        prompts, samples, seed = len(result.prompts), result.settings["samples_per_prompt"], result.settings.get("seed")
        yield f"{prompts} prompts x {samples} samples, seed {seed}; mean ± standard error over prompts."
        yield from ("", "| metric | mean | difference to the base model | p |", "|---|---|---|---|")
        for name, metric in result.metrics.items():
            paired = metric.paired
            if paired is None:
                yield f"| {name} | {measured(metric.mean, metric.standard_error)} | | |"
                continue
            p = "" if paired.p_value is None else f"{paired.p_value:.2g}"
            difference = measured(paired.difference, paired.standard_error, "+")
            yield f"| {name} | {measured(metric.mean, metric.standard_error)} | {difference} | {p} |"


def _results(recipe: Recipe, checkpoint: Path) -> list[EvaluationResult]:
    """The checkpoint's results; those under the recipe's settings first, in its order."""
    order = [setting.name for setting in recipe.evaluation_settings]
    results = saved_results(checkpoint / "evaluation")
    return sorted(results, key=lambda result: order.index(result.name) if result.name in order else len(order))


def _grid(recipe: Recipe, checkpoint: Path) -> Path | None:
    """The checkpoint's own samples; else the run's comparison, which shows its newest checkpoint."""
    for result in _results(recipe, checkpoint):
        grid = checkpoint / "samples" / result.stem / "grid.png"
        if grid.is_file():
            return grid
    run = RunDirectory(checkpoint.parent.parent)
    comparison = run.path / "comparison.png"
    return comparison if run.pointer("latest") == checkpoint and comparison.is_file() else None
