"""What the benchmarks use of amsd, in one place: whoever moves a name there mends it here.

Networks of a true architecture with random weights (nothing is downloaded), a recipe that trains on them, and a trainer
that is run for a few steps and timed.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from amsd.diffusion.families import family_for
from amsd.diffusion.families.base import Family
from amsd.diffusion.families.stable_diffusion_xl import StableDiffusionXL
from amsd.diffusion.parameterizations import build_policy
from amsd.experiment.fsdp import divided
from amsd.experiment.setup import build_accelerator, build_problem
from amsd.files import write_text
from amsd.recipe import Recipe, dump_toml, from_dict
from amsd.recipe.cost import forwards_per_step as forwards_per_step
from amsd.run_directory import RunDirectory
from amsd.shapes import pipeline_path
from amsd.training import methods
from amsd.training.events import CheckpointRecord, Notice, StepRecord
from amsd.training.experience import Sample
from amsd.training.problem import ControlProblem
from amsd.training.trainer import SOCTrainer

PROMPTS = ["a red circle", "a blue square"]


def random_pipeline(tiny: bool = False, device: str | torch.device = "cpu") -> StableDiffusionPipeline:
    """Stable Diffusion 1.5 with the published configuration of every network; the tokenizer alone is a small one.

    `tiny` keeps the architecture and cuts widths and the latents' size (8x8).
    """
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(pipeline_path() / "tokenizer", model_max_length=77)
    width, side = (64, 8) if tiny else (768, 64)
    text = CLIPTextConfig(
        vocab_size=1000 if tiny else 49408, hidden_size=width, intermediate_size=4 * width,
        num_hidden_layers=1 if tiny else 12, num_attention_heads=4 if tiny else 12, max_position_embeddings=77,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.device(device):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(32, 32, 32, 32) if tiny else (128, 256, 512, 512), layers_per_block=2,
            latent_channels=4, sample_size=8 * side,
        )  # fmt: skip
        unet = UNet2DConditionModel(
            sample_size=side, cross_attention_dim=width, attention_head_dim=8,
            block_out_channels=(32, 32, 64, 64) if tiny else (320, 640, 1280, 1280),
        )  # fmt: skip
        encoder = CLIPTextModel(text)
    return StableDiffusionPipeline(
        vae=vae.eval(), text_encoder=encoder.eval(), tokenizer=tokenizer, scheduler=_ddim(), unet=unet.eval(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _ddim() -> DDIMScheduler:
    """The scheduler of Stable Diffusion 1.5 and XL."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip


def published_pipeline(family: type[Family], tiny: bool, device: str | torch.device, dtype: torch.dtype) -> Any:
    """The first model that a family knows by heart, with random weights made on `device`: SDXL or Stable Diffusion 3.5.

    Networks are made in `dtype`, the autoencoder in float32; a T5 encoder is left out. `tiny` cuts the widths.
    """
    known = family.published[0]
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(pipeline_path() / "tokenizer", model_max_length=77)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    changes = _NARROW if tiny else {}
    latents = {} if family is StableDiffusionXL else {"shift_factor": 0.0609, "scaling_factor": 1.5305}
    with torch.device(device):
        vae = known.parts["vae"].made(**latents, **changes.get("vae", {}))
        with _floating(dtype):
            denoiser = getattr(diffusers, family.denoiser_class).from_config(
                {**known.denoiser, **changes.get(family.denoiser_class, {})}
            )
            texts = {
                name: known.parts[name].made(**ends, **changes.get("texts", {}))
                for name in ("text_encoder", "text_encoder_2")
            }
    networks = {name: network.eval() for name, network in {**texts, "vae": vae, family.denoiser_name: denoiser}.items()}
    tokenizers = {"tokenizer": tokenizer, "tokenizer_2": tokenizer}
    if family is StableDiffusionXL:
        pipeline = StableDiffusionXLPipeline(**networks, **tokenizers, scheduler=_ddim(), add_watermarker=False)
    else:
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        pipeline = StableDiffusion3Pipeline(
            **networks, **tokenizers, scheduler=scheduler, text_encoder_3=None, tokenizer_3=None
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


_NARROW: dict[str, dict[str, Any]] = {
    "vae": {"block_out_channels": (32, 32, 32, 32)},
    "texts": {
        "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
        "projection_dim": 64,
    },
    "UNet2DConditionModel": {
        "sample_size": 8, "block_out_channels": (32, 32, 64), "cross_attention_dim": 128,
        "transformer_layers_per_block": (1, 1, 1), "attention_head_dim": (2, 2, 4), "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": 6 * 32 + 64,
    },
    "SD3Transformer2DModel": {
        "sample_size": 8, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 4,
        "joint_attention_dim": 128, "caption_projection_dim": 32, "pooled_projection_dim": 128,
        "pos_embed_max_size": 16, "dual_attention_layers": (0,),
    },
}  # fmt: skip
"""What a tiny pipeline of a published architecture changes, by its part."""


@contextmanager
def _floating(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def recipe_of(sections: Mapping[str, Mapping[str, Any]]) -> Recipe:
    """A recipe for a model that is given as a pipeline: brightness as the reward, no evaluation, no checkpoint kept."""
    merged: dict[str, Any] = {
        "reward": [{"name": "brightness"}], "prompts": {"train": PROMPTS, "evaluation": PROMPTS},
        "optimizer": {"warmup_steps": 0}, "evaluation": {"every": 0}, "tracking": {"mode": "disabled"},
    }  # fmt: skip
    for name, values in sections.items():
        merged[name] = {**merged.get(name, {}), **values}
    return from_dict(merged)


def set_up(recipe: Recipe, pipeline: Any, device: torch.device) -> tuple[ControlProblem, Accelerator]:
    """The problem that a recipe states for a pipeline, on `device`; the pipeline is used up."""
    AcceleratorState._reset_state(reset_partial_state=True)  # one precision per process otherwise
    if device.type == "cpu":
        precision = "no" if recipe.model.precision == "fp32" else recipe.model.precision
        accelerator = Accelerator(mixed_precision=precision, cpu=True)
    else:
        accelerator = build_accelerator(recipe)
    policy = build_policy(family_for(pipeline, recipe.model), recipe.model)
    policy.to(accelerator.device)
    return build_problem(recipe, accelerator, policy, PROMPTS), accelerator


@contextmanager
def set_up_divided(recipe: Recipe, pipeline: Any) -> Iterator[tuple[ControlProblem, Accelerator]]:
    """The same with networks divided among the processes of the group that this process is in (`training.fsdp`)."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = build_accelerator(recipe)
    policy = build_policy(family_for(pipeline, recipe.model), recipe.model)
    with divided(policy, recipe, accelerator):
        yield build_problem(recipe, accelerator, policy, PROMPTS), accelerator


def another_problem(recipe: Recipe, accelerator: Accelerator, problem: ControlProblem) -> ControlProblem:
    """Another recipe's problem for the policy of this one; what was trained stays trained."""
    return build_problem(recipe, accelerator, problem.policy, PROMPTS)


class _Enough(Exception):
    """The steps that were asked for are done; ends a training before it writes a checkpoint."""


@dataclass
class StepTimer:
    """Keeps the values and the wall-clock time of each step, and ends the training after `steps` of them."""

    steps: int
    sync: Callable[[], None] = lambda: None
    on_begin: Callable[[str, int], None] = lambda phase, step: None
    on_done: Callable[[int], None] = lambda step: None
    """Called after each step; its time is not counted."""
    values: list[dict[str, float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    _since: float = 0.0

    def start(self) -> None:
        self.sync()
        self._since = time.perf_counter()

    def on_phase(self, phase: str, step: int) -> None:
        self.on_begin(phase, step)

    def on_step(self, record: StepRecord) -> None:
        self.sync()
        now = time.perf_counter()
        self.seconds.append(now - self._since)
        self.values.append(dict(record.values))
        self.on_done(record.step)
        self._since = time.perf_counter()
        if len(self.values) == self.steps:
            raise _Enough

    def on_checkpoint(self, record: CheckpointRecord) -> None:
        raise AssertionError(f"a checkpoint at step {record.step}: the recipe should have more steps than are timed")

    def on_notice(self, notice: Notice) -> None:
        pass


def trainer_of(
    problem: ControlProblem,
    accelerator: Accelerator,
    listeners: Sequence[Any],
    folder: Path,
    prompts: Sequence[str] = PROMPTS,
) -> SOCTrainer[Any]:
    """The trainer of the recipe's method."""
    run = RunDirectory(folder)
    write_text(run.recipe, dump_toml(problem.recipe))
    return methods.trainer_of(problem.recipe.method)(problem, run, prompts, accelerator, listeners)


def run_steps(
    problem: ControlProblem, accelerator: Accelerator, listener: StepTimer, prompts: Sequence[str] = PROMPTS
) -> StepTimer:
    """Train until the listener has seen its steps; the recipe must ask for more of them than that."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(problem, accelerator, [listener], Path(folder), prompts)
        listener.start()
        try:
            trainer.fit()
        except _Enough:
            return listener
    raise AssertionError(f"the training ended after {len(listener.values)} steps, {listener.steps} were to be timed")


def collect_once(problem: ControlProblem, accelerator: Accelerator, count: int) -> Any:
    """Experience of `count` trajectories under the current policy, keyed by their number."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(problem, accelerator, [], Path(folder))
        samples = [Sample(PROMPTS[index % len(PROMPTS)], (0, "benchmark", index)) for index in range(count)]
        return trainer.compute_experience(samples, 1, 1)


@contextmanager
def stepping(
    problem: ControlProblem, accelerator: Accelerator, prompts: Sequence[str] = PROMPTS
) -> Iterator[Callable[[], None]]:
    """A function that makes the next update of a training; the recipe must ask for more of them than are made."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(problem, accelerator, [], Path(folder), prompts)
        number = itertools.count(1)
        yield lambda: trainer.train_step(next(number))
