"""`amsd train --dry-run`: what a run trains, costs and downloads, without loading a weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from amsd.diffusion.blueprint import Blueprint, blueprint
from amsd.diffusion.families.decoding import DECODED_PIXELS
from amsd.diffusion.policy import DTYPES
from amsd.diffusion.quantization import BITS
from amsd.experiment.rehearsal import Rehearsal, duration, plain
from amsd.prompts import load_prompts
from amsd.recipe import Recipe, identity
from amsd.recipe.cost import forwards_per_step
from amsd.recipe.rules import require_even
from amsd.rewards.table import downloaded_gigabytes, shared_weights
from amsd.training.chunks import DEFAULT_MICRO_BATCH
from amsd.training.persistence import checkpoint_bytes, moment_bytes

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
DECODING_BYTES_PER_PIXEL = 16 * 1024
"""Activations of the reward gradient through Stable Diffusion's decoder in float32: 4 GiB for one image of 512 x 512,
measured on the CPU (docs/verified.md)."""
#: Sustained arithmetic that the time estimate assumes, in TFLOP/s.
ASSUMED_TFLOPS = 100.0
CARDS = (8, 12, 16, 24, 32, 40, 48, 80, 96, 141, 180)
"""Usual sizes of a GPU's memory in GB."""
COMMON_CARD = 80
"""GB above which a plan thinks of several cards."""
ROOM = 1.2
"""A fifth is kept for what the loss and the driver take."""
#: Below this a device waits for launches and memory: arithmetic says nothing of the time, nor pixels of the memory.
SMALL_FORWARD_FLOPS = 1e10


@dataclass(frozen=True)
class Plan:
    """A run before it starts; F is one forward pass of the network for one image."""

    recipe: Recipe
    processes: int
    denoiser_parameters: int
    quantizable_parameters: int
    """Of the denoiser, which `model.quantization` makes small."""
    denoiser_buffers: int
    """Numbers beside its parameters."""
    adapted_parameters: int
    """Of the layers that lora adds to."""
    vae_parameters: int
    text_parameters: int
    trained_parameters: int
    flops_per_forward: float
    forwards_per_step: float
    """network forward-equivalents per optimizer step (docs/method.md section 7)."""
    pixels: int
    """Of one image."""
    evaluation_prompts: int | None
    """None: the evaluation prompts are not on this machine yet."""
    download: str
    blueprint: Blueprint
    rehearsal: Rehearsal | None = None
    """What was measured on this machine, where that takes seconds only."""

    @property
    def evaluation_images(self) -> int | None:
        """Images per checkpoint, over all settings; None where the prompts are not known."""
        recipe = self.recipe
        each = recipe.evaluation.samples_per_prompt * len(recipe.evaluation_settings)
        return None if self.evaluation_prompts is None else self.evaluation_prompts * each

    @property
    def evaluation_forwards(self) -> int | None:
        """network forward passes per checkpoint; None where the prompts are not known."""
        steps = sum(
            each.num_inference_steps * (1 + (each.guidance_scale > 1)) for each in self.recipe.evaluation_settings
        )
        samples = self.recipe.evaluation.samples_per_prompt
        return None if self.evaluation_prompts is None else self.evaluation_prompts * samples * steps

    @property
    def memory_bytes(self) -> float:
        """Weights, gradients and AdamW's two moments on each device, without activations."""
        training = self.recipe.training
        others = 4 * self.vae_parameters  # in float32, whatever the precision
        if not training.offload_text_encoders:
            others += self.text_bytes
        trained = self.trained_parameters * (
            8 + moment_bytes(self.recipe) + (4 if training.ema_decay is not None else 0)
        )
        if training.fsdp and self.processes > 1:  # buffers are not divided
            return others + 2 * 4 * self.denoiser_buffers + (self.base_bytes + trained) / self.processes
        return others + self.base_bytes + self._rollout_bytes + self._buffer_bytes + trained

    @property
    def _rollout_bytes(self) -> float:
        """The copy of the trained network that rollouts go through: its weights are cast or merged once."""
        model = self.recipe.model
        if model.precision != "fp32":
            cast = self.trained_parameters if model.parameterization == "lora" else self.denoiser_parameters
            return float(_BYTES[model.precision] * cast)
        merged = model.parameterization == "lora" and model.quantization is None
        return 4.0 * self.adapted_parameters if merged else 0.0

    @property
    def _buffer_bytes(self) -> float:
        """In float32, of each network; copies share them."""
        return (4 if self.recipe.model.parameterization == "lora" else 8) * self.denoiser_buffers

    @property
    def text_bytes(self) -> int:
        """The text encoders."""
        return self.text_parameters * _BYTES[self.recipe.model.precision]

    @property
    def base_bytes(self) -> float:
        """The frozen network: a copy, or the network itself with lora."""
        each = _BYTES[self.recipe.model.precision]
        if self.recipe.model.quantization is None:
            return each * self.denoiser_parameters
        left = self.denoiser_parameters - self.quantizable_parameters
        return each * left + BITS / 8 * self.quantizable_parameters

    @property
    def checkpoint_bytes(self) -> float:
        """Size of a checkpoint."""
        return checkpoint_bytes(self.recipe, self.trained_parameters)

    @property
    def decoding_bytes(self) -> float:
        """Activations of the reward gradient with gradient checkpointing, the largest of a step at 512 px and more."""
        together = max(1, min(self.recipe.optimizer.prompts_per_step, DECODED_PIXELS // self.pixels))
        return DECODING_BYTES_PER_PIXEL * together * self.pixels

    @cached_property
    def back_bytes(self) -> float:
        """Activations of one trajectory's adjoint; 0 for a method that has none."""
        rows = self.recipe.method.adjoint_rows(self.recipe)
        return float(rows * self.blueprint.kept_bytes(DTYPES[self.recipe.model.precision])) if rows else 0.0

    def lines(self) -> Iterator[tuple[str, str]]:
        """Name and text of each line that is shown."""
        recipe, optimizer = self.recipe, self.recipe.optimizer
        local = -(-optimizer.prompts_per_step // self.processes)
        yield "identity", identity(recipe)
        yield "model", f"{recipe.model.pretrained}, {recipe.model.parameterization}, {recipe.model.precision}"
        yield "download", self.download
        share = self.trained_parameters / self.denoiser_parameters
        yield (
            "trained",
            f"{self.trained_parameters:,} parameters ({share:.2%} of the network's {self.denoiser_parameters:,})",
        )
        yield "memory", self._memory()
        yield "scorers", ", ".join(_scorers(recipe)) or "none is downloaded"
        devices = "1 process" if self.processes == 1 else f"{self.processes} processes x {local}"
        yield (
            "batch",
            f"{optimizer.prompts_per_step} trajectories per step: {devices}, "
            f"{_at_a_time(recipe, local)} at a time in the loss",
        )
        yield (
            "cost",
            f"{self.forwards_per_step:,.0f} network forward-equivalents per step "
            f"({plain(self.flops_per_forward / 1e9)} GFLOP each, "
            f"{plain(self.forwards_per_step * self.flops_per_forward / 1e12)} TFLOP in all)",
        )
        yield "time", self._time()
        yield "evaluation", self._evaluation()
        checkpoints = -(-recipe.training.steps // recipe.training.checkpoint_every)
        yield "checkpoints", f"{checkpoints}, of which the newest {recipe.training.keep} and the best are kept"

    @property
    def _small(self) -> bool:
        return self.flops_per_forward < SMALL_FORWARD_FLOPS

    def _time(self) -> str:
        steps = self.recipe.training.steps
        if self.rehearsal is not None:
            return self.rehearsal.time(self.recipe, self.evaluation_images or 0)
        if self._small:
            return f"no estimate for {steps} steps: a plan times one process with shipped rewards; a run shows it"
        seconds = self._seconds(self.forwards_per_step)
        return (
            f"{duration(seconds)} per step ({self.recipe.optimizer.prompts_per_step / seconds:.2g} images/s), "
            f"{duration(seconds * steps)} for {steps} steps, if a device sustains "
            f"{ASSUMED_TFLOPS:g} TFLOP/s; evaluation comes on top"
        )

    def _seconds(self, forwards: float) -> float:
        return forwards * self.flops_per_forward / (ASSUMED_TFLOPS * 1e12) / self.processes

    def _memory(self) -> str:
        if self.rehearsal is not None:
            return self.rehearsal.most(self.memory_bytes)
        text = f"{self.memory_bytes / 2**30:.2f} GiB per device for weights, gradients and optimizer; "
        if self.recipe.training.offload_text_encoders:
            text += f"the text encoders ({self.text_bytes / 2**30:.2f} GiB) join them while they read prompts; "
        text += "scorers and "
        if self._small or not self.recipe.method.needs_reward_gradient:
            return text + "activations come on top"
        size = round(self.pixels**0.5)
        return text + (
            f"activations come on top, about {self.decoding_bytes / 2**30:.0f} GiB for the reward gradient through the "
            f"decoder at {size} x {size}{self._adjoint()}: {self._card()}"
        )

    def _adjoint(self) -> str:
        return f", then {self.back_bytes / 2**30:.1f} GiB for each trajectory's adjoint" if self.back_bytes else ""

    def _card(self) -> str:
        """The smallest usual card that holds weights, rewards, and decoder or adjoint, which take turns.

        Held-out scorers take turns with them too.
        """
        trained = {term.name for term in self.recipe.reward}
        rewards = 1e9 * sum(gigabytes for name, gigabytes in _downloaded(self.recipe) if name in trained)
        needed = ROOM * (self.memory_bytes + max(self.decoding_bytes, self.back_bytes) + rewards)
        card = next((size for size in CARDS if needed <= size * 1e9), None)
        text = f"too much for a GPU of {CARDS[-1]} GB" if card is None else f"at least a GPU of {card} GB"
        whole = self.recipe.model.parameterization != "lora" and not self.recipe.training.fsdp
        if whole and (card is None or card > COMMON_CARD):
            text += "; training.fsdp divides it among several"
        return text

    def _evaluation(self) -> str:
        settings = len(self.recipe.evaluation_settings)
        named = "1 setting" if settings == 1 else f"{settings} settings"
        images, forwards = self.evaluation_images, self.evaluation_forwards
        if images is None or forwards is None:
            samples = self.recipe.evaluation.samples_per_prompt
            return f"{samples} samples of each prompt under {named} per checkpoint; the prompts are not known yet"
        if not images:
            return "never"
        seconds = "" if self._small else f", {duration(self._seconds(forwards))}"
        return (
            f"{images:,} images per checkpoint ({named}), {forwards:,} network forwards{seconds}; once more for the "
            "base model"
        )


def make_plan(
    recipe: Recipe, processes: int, found: Blueprint | None = None, rehearsal: Rehearsal | None = None
) -> Plan:
    """The plan of a recipe; needs the model's configuration, not its weights.

    Raises:
        UsageError: the model is absent and its architecture is unknown.
    """
    require_even(recipe, processes)
    found = found or blueprint(recipe.model)
    found.family.check_recipe(recipe)
    total, lora = found.parameters, recipe.model.lora
    adapts = recipe.model.parameterization == "lora"
    trained = found.lora_parameters(lora.rank, lora.targets) if adapts else total
    adapted = found.adapted_parameters(lora.targets) if adapts else 0
    return Plan(
        recipe, processes, total, found.quantizable_parameters, found.buffers, adapted,
        found.vae_parameters, found.text_parameters, trained,
        found.forward_flops(), forwards_per_step(recipe, processes), found.pixels, _evaluation_prompts(recipe),
        found.download, found, rehearsal,
    )  # fmt: skip


def _at_a_time(recipe: Recipe, local: int) -> str:
    """How many of a process's `local` trajectories are in the loss at once."""
    size = recipe.optimizer.micro_batch
    return f"as many as fit, {DEFAULT_MICRO_BATCH} at first" if size == "auto" else str(min(size, local))


def _evaluation_prompts(recipe: Recipe) -> int | None:
    """Prompts that are evaluated; None where the set is not on this machine."""
    if recipe.evaluation.every == 0:
        return 0
    source = recipe.prompts.evaluation
    if isinstance(source, str) and source.startswith("hub:"):
        return recipe.evaluation.prompts
    return len(load_prompts(source, "evaluation", recipe.prompts.column).texts[: recipe.evaluation.prompts])


def _scorers(recipe: Recipe) -> Iterator[str]:
    first: dict[str, str] = {}
    for name, gigabytes in _downloaded(recipe):
        owner = first.setdefault(shared_weights(name) or name, name)
        same = f"the same download as {owner}"
        yield f"{name} ({same if owner != name else f'{gigabytes:g} GB, downloaded on first use'})"


def _downloaded(recipe: Recipe) -> Iterator[tuple[str, float]]:
    """Rewards, metrics and embedders whose default weights are downloaded on their first use, with their size."""
    evaluation = recipe.evaluation if recipe.evaluation.every else None
    used = [term.name for term in recipe.reward]
    if evaluation is not None:
        used += [*evaluation.metrics, *evaluation.diversity, *evaluation.distance]
    options = recipe.scorer_options
    for name in dict.fromkeys(used):
        gigabytes = downloaded_gigabytes(name)
        if gigabytes is not None and not options.get(name):
            yield name, gigabytes
