"""`amsd train --dry-run`: what a run trains, costs and downloads, without loading a weight."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amsd.diffusion.loading import EMBEDDED, locate, locate_configuration
from amsd.diffusion.single_file import default_configuration, parameters, stored_shapes
from amsd.errors import UsageError
from amsd.prompts import load_prompts
from amsd.recipe import Recipe, identity
from amsd.recipe.cost import forwards_per_step

#: UNet of Stable Diffusion 1.x, for plans made before it was ever downloaded (diffusers' configuration of the model).
_SD1_UNET: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
_SD1_OTHER_PARAMETERS = 123_060_480 + 83_653_863  # CLIP text encoder and AutoencoderKL
_SD1_NAMES = ("stable-diffusion-v1", "CompVis/stable-diffusion-v1")
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
#: Sustained arithmetic that the time estimate assumes, in TFLOP/s.
ASSUMED_TFLOPS = 100.0


@dataclass(frozen=True)
class Plan:
    """A run before it starts; F is one forward pass of the UNet for one image."""

    recipe: Recipe
    processes: int
    unet_parameters: int
    other_parameters: int
    trained_parameters: int
    flops_per_forward: float
    forwards_per_step: float
    """UNet forward-equivalents per optimizer step (method.md section 7)."""
    evaluation_images: int | None
    """None: the evaluation prompts are not on this machine yet."""
    download: str

    @property
    def memory_bytes(self) -> float:
        """Weights, gradients and AdamW's two moments on each device, without activations."""
        model = self.recipe.model
        frozen_unets = 1  # the base: a copy (full, offset) or the network itself (lora)
        frozen = (frozen_unets * self.unet_parameters + self.other_parameters) * _BYTES[model.precision]
        average = 1 if self.recipe.training.ema_decay is not None else 0
        return frozen + self.trained_parameters * 4 * (4 + average)

    def lines(self) -> Iterator[tuple[str, str]]:
        """Name and text of each line that is shown."""
        recipe, optimizer = self.recipe, self.recipe.optimizer
        local = -(-optimizer.prompts_per_step // self.processes)
        yield "identity", identity(recipe)
        yield "model", f"{recipe.model.pretrained}, {recipe.model.parameterization}, {recipe.model.precision}"
        yield "download", self.download
        share = self.trained_parameters / self.unet_parameters
        yield "trained", f"{self.trained_parameters:,} parameters ({share:.2%} of the UNet's {self.unet_parameters:,})"
        yield "memory", f"{self.memory_bytes / 2**30:.2f} GiB per device for weights and optimizer, plus activations"
        yield (
            "batch",
            (
                f"{optimizer.prompts_per_step} trajectories per step: {self.processes} processes x {local}, "
                f"{min(optimizer.micro_batch, local)} at a time"
            ),
        )
        yield "cost", f"{self.forwards_per_step:,.0f} UNet forward-equivalents per step"
        seconds = self.forwards_per_step * self.flops_per_forward / (ASSUMED_TFLOPS * 1e12) / self.processes
        yield (
            "time",
            (
                f"{seconds:,.2g} s per step at {ASSUMED_TFLOPS:g} TFLOP/s sustained "
                f"({self.flops_per_forward / 1e9:,.3g} GFLOP per forward); "
                f"{seconds * recipe.training.steps / 3600:,.2g} h for {recipe.training.steps} steps"
            ),
        )
        settings = len(recipe.evaluation_settings)
        if self.evaluation_images is None:
            yield "evaluation", f"prompts are missing on this machine: {recipe.prompts.evaluation}"
        else:
            yield "evaluation", f"{self.evaluation_images:,} images per checkpoint ({settings} settings)"
        checkpoints = -(-recipe.training.steps // recipe.training.checkpoint_every)
        yield "checkpoints", f"{checkpoints}, of which the newest {recipe.training.keep} and the best are kept"


def make_plan(recipe: Recipe, processes: int) -> Plan:
    """The plan of a recipe; needs the model's configuration, not its weights.

    Raises:
        UsageError: the model is absent and its architecture is unknown.
    """
    configuration, others, download = _architecture(recipe)
    unet = _meta_unet(configuration)
    total = sum(parameter.numel() for parameter in unet.parameters())
    _check_stored_unet(recipe, total)
    flops = _forward_flops(unet, configuration)
    trained = total if recipe.model.parameterization != "lora" else _lora_parameters(unet, recipe)
    prompts = _evaluation_prompts(recipe)
    images = (
        None if prompts is None else prompts * recipe.evaluation.samples_per_prompt * len(recipe.evaluation_settings)
    )
    forwards = forwards_per_step(recipe, processes)
    return Plan(recipe, processes, total, others, trained, flops, forwards, images, download)


def _architecture(recipe: Recipe) -> tuple[dict[str, Any], int, str]:
    """Configuration of the UNet, parameters of the other networks, and what has to be downloaded."""
    name = recipe.model.pretrained
    if recipe.model.is_single_file:
        return _of_single_file(recipe)
    if not name.startswith(EMBEDDED) and not Path(name).expanduser().exists():
        cached = _cached(name, recipe.model.revision)
        if cached is None and not _is_sd1(name):
            locate(recipe.model)  # says why it cannot be found
            raise UsageError(f"model.pretrained = {name!r}: download it once; its architecture is not known to amsd.")
        gigabytes = 4.27 if recipe.model.variant is None else 2.14
        download = "nothing, it is in the local cache" if cached else f"about {gigabytes} GB from the hub: {name}"
        return cached or _SD1_UNET, _SD1_OTHER_PARAMETERS, download
    folder = Path(locate(recipe.model))
    configuration = _unet_configuration(folder)
    others = sum(
        _stored_parameters(path) for part in ("vae", "text_encoder", "text_encoder_2")
        for path in sorted((folder / part).glob("*.safetensors"))
    )  # fmt: skip
    return configuration, others, "nothing, it is on this machine"


def _of_single_file(recipe: Recipe) -> tuple[dict[str, Any], int, str]:
    """As `_architecture`, of a checkpoint whose configuration lies elsewhere."""
    file = Path(locate(recipe.model))
    _, others = parameters(stored_shapes(file))
    name = recipe.model.config or default_configuration(file)
    local = name.startswith(EMBEDDED) or Path(name).expanduser().exists()
    if not local and _cached(name, recipe.model.revision) is None and _is_sd1(name):
        return _SD1_UNET, others, f"configuration and tokenizer, about 2 MB, from the hub: {name}"
    return _unet_configuration(locate_configuration(recipe.model)), others, "nothing, it is on this machine"


def _check_stored_unet(recipe: Recipe, expected: int) -> None:
    """A single file and its configuration can disagree: say so before the run.

    Raises:
        UsageError: the file's UNet has another number of parameters than the configuration's, `expected`.
    """
    if not recipe.model.is_single_file:
        return
    found, _ = parameters(stored_shapes(Path(locate(recipe.model))))
    if found != expected:
        raise UsageError(
            f"model.pretrained = {recipe.model.pretrained!r} holds a UNet of {found:,} parameters but its "
            f"configuration describes one of {expected:,}: set model.config to that of the same architecture."
        )


def _is_sd1(name: str) -> bool:
    return any(part in name for part in _SD1_NAMES)


def _unet_configuration(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
    return found


def _cached(name: str, revision: str | None) -> dict[str, Any] | None:
    """The UNet's configuration of a hub repository, if it has been downloaded."""
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(name, "unet/config.json", revision=revision)
    return _unet_configuration(Path(file).parent.parent) if isinstance(file, str) else None


def _stored_parameters(path: Path) -> int:
    return sum(math.prod(shape) for shape in stored_shapes(path).values())


def _meta_unet(configuration: dict[str, Any]) -> nn.Module:
    from diffusers import UNet2DConditionModel

    plain = {key: value for key, value in configuration.items() if not key.startswith("_")}
    with torch.device("meta"):
        unet: nn.Module = UNet2DConditionModel(**plain)
    return unet


def _forward_flops(unet: nn.Module, configuration: dict[str, Any]) -> float:
    """Floating-point operations of one forward pass for one image, counted on shapes alone."""
    from torch.utils.flop_counter import FlopCounterMode

    config: Any = unet.config
    size = config.sample_size
    added = None
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {"text_embeds": torch.empty(1, pooled, device="meta"), "time_ids": torch.empty(1, 6, device="meta")}
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        unet(
            torch.empty(1, config.in_channels, size, size, device="meta"),
            torch.zeros(1, dtype=torch.long, device="meta"),
            encoder_hidden_states=torch.empty(1, 77, config.cross_attention_dim, device="meta"),
            added_cond_kwargs=added,
        )
    return float(counter.get_total_flops())


def _lora_parameters(unet: nn.Module, recipe: Recipe) -> int:
    total = 0
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(tuple(recipe.model.lora.targets)):
            total += recipe.model.lora.rank * (module.in_features + module.out_features)
    return total


def _evaluation_prompts(recipe: Recipe) -> int | None:
    """Prompts that are evaluated; None where the set is not on this machine."""
    if recipe.evaluation.every == 0:
        return 0
    source = recipe.prompts.evaluation
    remote = isinstance(source, str) and source.startswith("hub:")
    absent = isinstance(source, str) and not source.startswith("embedded:") and not Path(source).expanduser().is_file()
    if remote or absent:
        return recipe.evaluation.prompts
    return len(load_prompts(source, "evaluation").texts[: recipe.evaluation.prompts])
