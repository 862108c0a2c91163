"""`amsd export`: a pipeline folder, and for LoRA the standard LoRA file, that plain diffusers loads without amsd."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import torch

from amsd.diffusion.parameterizations import ADAPTER_FILE, LoraPolicy, OffsetPolicy
from amsd.errors import UsageError
from amsd.experiment.card import write_card
from amsd.experiment.setup import load_policy
from amsd.files import require_vacant, write_folder
from amsd.recipe import Recipe

_LOG = logging.getLogger(__name__)

LORA_FILE = "pytorch_lora_weights.safetensors"


def export(recipe: Recipe, checkpoint: Path, to: Path) -> Path:
    """Write the merged pipeline to the folder `to` (which must not exist or be empty).

    Raises:
        UsageError: `to` is in use, or the parameterization is `offset`, which no single network can express.
    """
    require_vacant(to)
    policy = load_policy(recipe, torch.device("cpu"), checkpoint)
    if isinstance(policy, OffsetPolicy):
        raise UsageError(
            "model.parameterization = 'offset' is base plus a second network and cannot be merged into one network; "
            "use `amsd sample` on the checkpoint, or train with 'full' or 'lora'."
        )
    pipeline = policy.pipeline
    pipeline.scheduler = policy.family.exported_sampler(recipe.schedule)
    for sentence in policy.family.departures(recipe.schedule):
        _LOG.warning("%s", sentence)
    if isinstance(policy, LoraPolicy):
        policy.family.merge_lora()

    def fill(folder: Path) -> None:
        pipeline.save_pretrained(folder)
        if isinstance(policy, LoraPolicy):
            shutil.copyfile(checkpoint / ADAPTER_FILE, folder / LORA_FILE)
        shutil.copyfile(checkpoint / "recipe.toml", folder / "recipe.toml")
        write_card(folder, recipe, checkpoint)

    write_folder(to, fill)
    return to
