"""`model.start`: training begins from something that is fine-tuned already, while the base stays the base."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from amsd.diffusion import lora_input
from amsd.diffusion.families.base import Family
from amsd.diffusion.loading import load_family, locate, named_as, other_model
from amsd.diffusion.lora_file import LORA_FILE
from amsd.diffusion.lora_forms import LoraFile, read_lora
from amsd.diffusion.parameterizations import ADAPTER_FILE, FullPolicy, LoraPolicy
from amsd.diffusion.policy import Policy
from amsd.errors import UsageError
from amsd.reading import require_same
from amsd.recipe import Model
from amsd.run_directory import resolve_checkpoint

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class FromCheckpoint:
    """Training begins from a checkpoint of the recipe's own parameterization; one of LoRA is read as a file."""

    path: Path


@dataclass(frozen=True)
class FromLora:
    """Training begins from a LoRA file, whose rank, alpha and layers are compared."""

    file: Path


@dataclass(frozen=True)
class FromPipeline:
    """Training begins from the denoiser of another pipeline: a folder, a single file, or a name on the hub."""

    name: str


Start = FromCheckpoint | FromLora | FromPipeline


def named(model: Model) -> str:
    """The key and its value, as messages name them."""
    return f"model.start = {model.start!r}"


def find_start(model: Model, denoiser: str) -> Start | None:
    """What a recipe begins from, without loading it; None without the key. `denoiser` is its name in the pipeline.

    A full network begins from a checkpoint, a LoRA (added to the base) or another pipeline of the same architecture; a
    LoRA from a checkpoint or a LoRA file of its own rank, alpha and layers; an offset from a checkpoint of an offset.

    Raises:
        UsageError: nothing is there, or this parameterization cannot begin from it.
    """
    if model.start is None:
        return None
    what = named(model)
    checkpoint = checkpoint_of(model.start)
    file = lora_input.find_lora(model.start, what) if checkpoint is None else lora_input.lora_file(checkpoint)
    own = {"full": denoiser, "offset": "offset"}.get(model.parameterization)
    if checkpoint is not None and own is not None and (checkpoint / own).is_dir():
        return FromCheckpoint(checkpoint)
    if file is not None and model.parameterization != "offset":
        return FromLora(file)
    if checkpoint is None and model.parameterization == "full":
        return FromPipeline(model.start)
    raise UsageError(_impossible(model, what))


def start_from(policy: Policy, model: Model) -> None:
    """Give an unchanged policy the weights that `model.start` names; nothing without the key.

    Raises:
        UsageError: as of `find_start`, or the weights do not fit.
    """
    what = named(model)
    match find_start(model, policy.family.denoiser_name):
        case FromCheckpoint(path):
            policy.load(path)
        case FromLora(file) if isinstance(policy, LoraPolicy):
            _take_adapter(policy, file, model, what)
        case FromLora(file):
            assert isinstance(policy, FullPolicy)
            _merge(policy, file, what)
        case FromPipeline(name):
            assert isinstance(policy, FullPolicy)
            _take_denoiser(policy, other_model(model, name), what)


def require_start(model: Model) -> None:
    """Check that what `model.start` names is there, without loading it.

    Raises:
        UsageError: it is not.
    """
    if model.start is None or checkpoint_of(model.start):
        return
    if lora_input.find_lora(model.start, named(model)):
        return
    with named_as(model.start, named(model)):
        locate(other_model(model, model.start))


def checkpoint_of(start: str) -> Path | None:
    """The checkpoint that a path means: itself, or that of a run."""
    path = Path(start).expanduser()
    if not path.exists():
        return None
    try:
        return resolve_checkpoint(path)
    except UsageError:
        return None


def _merge(policy: FullPolicy, file: Path, what: str) -> None:
    """The trained copy becomes the base plus the LoRA."""
    family = policy.family
    _refuse_text(family, lora_input.put_on(family, file, what), file, what)
    family.merge_lora()
    policy.trained_network.requires_grad_(True)


def require_lora(family: Family, lora: LoraFile, file: Path, model: Model, what: str) -> None:
    """Check that a recipe's parameterization can begin from a LoRA.

    Raises:
        UsageError: it changes a text encoder, or its rank or alpha is not the recipe's.
    """
    _refuse_text(family, lora, file, what)
    if model.parameterization == "lora":
        _require_shape(lora, model, what)


def _refuse_text(family: Family, lora: LoraFile, file: Path, what: str) -> None:
    if lora.changes_text(family):
        raise UsageError(
            f"{what}: {file} changes the text encoder too, which amsd does not train: base and fine-tuned model share "
            "one. Merge the file into a pipeline and set model.pretrained to it, or use a LoRA of the denoiser alone."
        )


def _take_denoiser(policy: FullPolicy, model: Model, what: str) -> None:
    """The trained copy becomes the denoiser of another pipeline."""
    with named_as(model.pretrained, what):
        other = load_family(model)
    own = policy.family
    state = other.denoiser.state_dict()
    require_same(policy.trained_network.state_dict(), state, what)
    types = [each.pipeline.scheduler.config.get("prediction_type", "epsilon") for each in (own, other)]
    if types[0] != types[1]:
        raise UsageError(
            f"{what} predicts {types[1]!r}, the base predicts {types[0]!r}: the two cannot be compared step by step. "
            "Set model.pretrained to a model of the same prediction."
        )
    for name in ("vae", *own.text_encoder_names):
        if _differ(own.pipeline.components.get(name), other.pipeline.components.get(name)):
            _LOG.warning("%s: its %s differs from the base model's. amsd uses the base model's.", what, name)
    policy.trained_network.load_state_dict(state)


def _take_adapter(policy: LoraPolicy, file: Path, model: Model, what: str) -> None:
    """The adapters get the weights of a LoRA file of their own rank, alpha and layers."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    family = policy.family
    lora = read_lora(family, file, what)
    require_lora(family, lora, file, model, what)
    network: Any = policy.trained_network
    own, state = get_peft_model_state_dict(network, adapter_name="default"), lora.state(family.denoiser_name)
    try:
        require_same(own, state, f"{what}: {file}")
    except UsageError as error:
        raise UsageError(f"{error} Set model.lora.targets to the layers of the file.") from error
    set_peft_model_state_dict(network, state)


def _require_shape(lora: LoraFile, model: Model, what: str) -> None:
    """Check rank and alpha.

    Raises:
        UsageError: they are not the recipe's; both are named.
    """
    own = model.lora
    own_alpha = float(own.rank if own.alpha is None else own.alpha)
    ranks, alphas = lora.strengths()
    if ranks != {own.rank} or alphas != {own_alpha}:
        rank, alpha = " and ".join(map(str, sorted(ranks))), " and ".join(f"{each:g}" for each in sorted(alphas))
        way_out = f"Set model.lora.rank = {rank} and model.lora.alpha = {alpha}."
        if len(ranks) > 1 or len(alphas) > 1:
            way_out = "Only model.parameterization = 'full' begins from a LoRA whose layers differ in rank or alpha."
        raise UsageError(
            f"{what} has rank {rank} and alpha {alpha}; the recipe has rank {own.rank} and alpha {own_alpha:g}. "
            f"{way_out}"
        )


def _differ(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is not other
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() != theirs.keys() or any(
        mine[name].shape != theirs[name].shape or not torch.equal(mine[name].float(), theirs[name].float())
        for name in mine
    )


def _impossible(model: Model, what: str) -> str:
    """That this parameterization cannot begin from what `model.start` names."""
    own = None if model.start is None else Path(model.start).expanduser() / LORA_FILE
    if model.parameterization == "lora" and own is not None and own.is_file():
        return (
            f"{what} is a pipeline, and model.parameterization = 'lora' begins from a LoRA: name the one in it, {own}."
        )
    ways = {
        "full": "a checkpoint of a full fine-tuning, a LoRA (a file or a checkpoint), or a pipeline",
        "lora": f"a LoRA: a checkpoint with {ADAPTER_FILE}, or a .safetensors file of one",
        "offset": "a checkpoint of an offset",
    }
    return (
        f"{what}: model.parameterization = {model.parameterization!r} can begin from "
        f"{ways[model.parameterization]}, and this is none of them. To train on top of any model, set "
        "model.pretrained to it (a checkpoint becomes a pipeline by `amsd export CHECKPOINT --output FOLDER`), "
        "which is then the base."
    )
