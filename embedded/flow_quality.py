"""The gates of the flow model, measured on the folder that a user loads: plain diffusers, and amsd's own sampler."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amsd.diffusion.families import family_for
from amsd.diffusion.guidance import Conditioning, NetworkPredictor
from amsd.diffusion.noise import normal
from amsd.diffusion.rollout import rollout
from amsd.recipe import Model, Schedule
from amsd.shapes import pipeline_path, prompts_path
from amsd.shapes.classifier import AttributeClassifier
from embedded.quality import Quality, read_accuracy
from embedded.smoothness import measure as measure_smoothness

GUIDANCE, STEPS = 3.0, 20
AT_LEAST = {"heldout_color": 0.93, "heldout_form": 0.95, "heldout_shape": 0.7}
AT_MOST = {"memoryless_correlation": 0.1, "zero_tokens_change": 0.02}


def load_flow(folder: Path) -> Any:
    """The pipeline as plain diffusers loads it, silent; a folder without T5 has to be told so."""
    from diffusers import StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate_flow(pipeline: Any, prompts: list[str], *, seed: int, zero_tokens: int = 0, steps: int = STEPS) -> Tensor:
    """Images (B, 3, 32, 32) in [0, 1] at guidance 3, one per prompt."""
    images: Tensor = pipeline(
        prompts, num_inference_steps=steps, guidance_scale=GUIDANCE, output_type="pt",
        generator=torch.Generator().manual_seed(seed), max_sequence_length=zero_tokens,
    ).images  # fmt: skip
    return images


@torch.no_grad()
def memoryless_images(pipeline: Any, prompts: list[str], *, seed: int, steps: int = 10) -> Tensor:
    """Images sampled by amsd at eta = 1 without guidance."""
    family = family_for(pipeline, Model(max_sequence_length=0))
    affine = family.steps(Schedule(num_inference_steps=steps))
    conditioning = Conditioning(family.encode(prompts), family.encode_empty(len(prompts)))
    keys = [(seed, "quality", row) for row in range(len(prompts))]
    noise = normal(keys, (steps + 1, *family.latent_shape), torch.device("cpu"), torch.float32)
    predict = NetworkPredictor(family.network(family.denoiser), affine, conditioning)
    return family.decode(rollout(predict, affine, noise).terminal).clamp(0, 1)


def measure_flow(folder: Path, *, seed: int, samples: int = 8) -> Quality:
    """All gates, and figures without one; about two minutes on one core."""
    pipeline = load_flow(folder)
    classifier = AttributeClassifier.load(pipeline_path() / "classifier.safetensors")
    captions = prompts_path("evaluation").read_text().splitlines()
    prompts = [caption for caption in captions for _ in range(samples)]
    measured = {}
    for name, share in read_accuracy(classifier, generate_flow(pipeline, prompts, seed=seed), prompts).items():
        measured[f"heldout_{name}"] = share
    for name, share in read_accuracy(classifier, memoryless_images(pipeline, prompts, seed=seed), prompts).items():
        measured[f"heldout_eta1_{name}"] = share
    few = [generate_flow(pipeline, captions, seed=seed, zero_tokens=count, steps=10) for count in (0, 256)]
    measured["zero_tokens_change"] = float((few[0] - few[1]).abs().mean())
    family = family_for(pipeline, Model(max_sequence_length=0))
    smooth = asdict(measure_smoothness(family, family.steps(Schedule(num_inference_steps=10)), seed=seed))
    measured["memoryless_correlation"] = smooth.pop("correlation")
    rounded = {name: round(value, 4) for name, value in {**measured, **smooth}.items()}
    return Quality(rounded, AT_LEAST, AT_MOST)
