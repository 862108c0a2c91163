"""`amsd export`: a pipeline folder, and for LoRA the standard LoRA file, that plain diffusers loads without amsd."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from amsd.diffusion.families.kohya import write_kohya
from amsd.diffusion.lora_file import LORA_FILE, write_diffusers
from amsd.diffusion.parameterizations import ADAPTER_FILE, LoraPolicy, OffsetPolicy
from amsd.errors import UsageError
from amsd.experiment.card import write_card
from amsd.experiment.setup import load_policy
from amsd.files import require_vacant, write_folder
from amsd.places import in_value, published_toml
from amsd.recipe import Recipe
from amsd.recipe.load import read_run
from amsd.run_directory import resolve_checkpoint
from amsd.tracking.progress import Report, silent

_LOG = logging.getLogger(__name__)

Format = Literal["diffusers", "kohya"]


def export(
    recipe: Recipe, checkpoint: Path | str, to: Path | str, style: Format = "diffusers", report: Report = silent
) -> Path:
    """Write the folder `to` (which must not exist or be empty): a merged pipeline, or a LoRA file in kohya's format.

    `checkpoint` is its folder, or a run's (its best one).

    Raises:
        UsageError: `to` is in use, the parameterization is `offset`, which no single network can express, or kohya's
            format is asked for where no LoRA was trained or where it has no names for the model's layers.
    """
    checkpoint, to = resolve_checkpoint(checkpoint), Path(to)
    require_vacant(to)
    if style == "kohya":
        return _export_kohya(recipe, checkpoint, to, report)
    report(f"step 1 of 3: loading {checkpoint.name}", 0, 0)
    # Weights as they were before training rounded them, and all in float32: pipelines that are loaded without a dtype
    # keep that of their text encoders and widen the other networks, so that the two would not fit.
    whole = recipe.model.model_copy(update={"quantization": None, "precision": "fp32"})
    policy = load_policy(recipe.model_copy(update={"model": whole}), torch.device("cpu"), checkpoint)
    if isinstance(policy, OffsetPolicy):
        raise UsageError(
            "model.parameterization = 'offset' is base plus a second network and cannot be merged into one network; "
            "use `amsd sample` on the checkpoint, or train with 'full' or 'lora'."
        )
    pipeline = policy.pipeline
    pipeline.scheduler = policy.family.exported_sampler(recipe.schedule)
    departures = [*policy.family.departures(recipe.schedule), *_cut_elsewhere(recipe)]
    for sentence in departures:
        _LOG.warning("%s", sentence)
    if isinstance(policy, LoraPolicy):
        policy.family.merge_lora()

    def fill(folder: Path) -> None:
        report("step 2 of 3: writing the pipeline", 0, 0)
        pipeline.save_pretrained(folder)
        _forget_places(folder)
        if isinstance(policy, LoraPolicy):
            write_diffusers(checkpoint / ADAPTER_FILE, folder / LORA_FILE)
        _describe(folder, recipe, checkpoint, departures, report)

    write_folder(to, fill, replace=False)
    return to


def _describe(folder: Path, recipe: Recipe, checkpoint: Path, departures: Sequence[str], report: Report) -> None:
    """Write the run's recipe and the model card beside the weights."""
    (folder / "recipe.toml").write_text(published_toml(read_run(checkpoint / "recipe.toml")), encoding="utf-8")
    report("step 3 of 3: writing the model card and its pictures", 0, 0)
    write_card(folder, recipe, checkpoint, departures)


def _forget_places(folder: Path) -> None:
    """Diffusers and transformers write where a model was loaded from (`_name_or_path`); not on other machines."""
    for file in folder.rglob("*.json"):
        tree = json.loads(file.read_text(encoding="utf-8"))
        changed = _elsewhere(tree)
        if changed != tree:
            file.write_text(json.dumps(changed, indent=2) + "\n", encoding="utf-8")


def _elsewhere(node: Any, key: str = "") -> Any:
    """A configuration without paths: other texts, such as the words of a vocabulary, may look like some and stay."""
    if isinstance(node, dict):
        return {name: _elsewhere(value, name) for name, value in node.items()}
    if isinstance(node, list):
        return [_elsewhere(value) for value in node]
    if isinstance(node, str) and (key.endswith("name_or_path") or _exists(node)):
        return in_value(node)
    return node


def _exists(text: str) -> bool:
    """Whether a text is the absolute path of something that is there."""
    path = Path(text)
    try:
        return path.is_absolute() and len(path.parts) > 2 and path.exists()
    except (OSError, ValueError):
        return False


def _cut_elsewhere(recipe: Recipe) -> Iterator[str]:
    """Diffusers' own call reads one window of a prompt."""
    windows = recipe.model.prompt_windows
    if windows > 1:
        yield (
            f"Fine-tuning read prompts in {windows} windows of tokens (model.prompt_windows); the call of a diffusers "
            "pipeline cuts a prompt after the first. `amsd sample` reads all."
        )


def _export_kohya(recipe: Recipe, checkpoint: Path, to: Path, report: Report) -> Path:
    """The folder `to` with `<its name>.safetensors`, the card and the recipe; the base model is only looked at."""
    if recipe.model.parameterization != "lora":
        raise UsageError(
            f"kohya's format writes a LoRA file, but model.parameterization = {recipe.model.parameterization!r}; "
            "export in diffusers' format, or train with 'lora'."
        )
    report("step 1 of 3: reading the base model", 0, 0)
    version = load_policy(recipe, torch.device("cpu"), checkpoint).family.kohya_base()

    def fill(folder: Path) -> None:
        report("step 2 of 3: writing the LoRA file", 0, 0)
        write_kohya(checkpoint / ADAPTER_FILE, folder / f"{to.resolve().name}.safetensors", version)
        _describe(folder, recipe, checkpoint, (), report)

    write_folder(to, fill, replace=False)
    return to
