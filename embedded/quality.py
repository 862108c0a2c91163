"""The gates that the embedded model has to pass, measured through plain diffusers on the folder that a user loads."""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw
from scipy import ndimage
from torch import Tensor

from amsd.shapes import prompts_path
from amsd.shapes.captions import COLORS, FORMS, SHAPES, parse_caption
from amsd.shapes.classifier import AttributeClassifier, accuracy
from amsd.shapes.rewards import objectness
from embedded.classifier import measure as classifier_accuracy
from embedded.vae import psnr_of

GUIDANCE = 5.0
STEPS = 50

AT_LEAST = {
    "vae_psnr": 36.0,
    "classifier_all": 0.98,
    "heldout_color": 0.93,
    "heldout_form": 0.95,
    "heldout_shape": 0.70,
}
AT_MOST = {"memoryless_correlation": 0.1}


@dataclass(frozen=True)
class Quality:
    """Measured figures by name, and the bounds that some of them have to keep."""

    measured: dict[str, float]
    at_least: dict[str, float]
    at_most: dict[str, float]

    @property
    def passed(self) -> bool:
        """Whether every gate is met."""
        return not self.failures()

    def failures(self) -> list[str]:
        """Names of the figures that miss their gate."""
        low = [name for name, bound in self.at_least.items() if not self.measured[name] >= bound]
        return low + [name for name, bound in self.at_most.items() if not self.measured[name] <= bound]

    def to_json(self) -> dict[str, Any]:
        """Plain data for training.json."""
        return {**asdict(self), "passed": self.passed}


def load(folder: Path) -> tuple[StableDiffusionPipeline, AttributeClassifier]:
    """The pipeline as plain diffusers loads it, silent, and the classifier beside it."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, AttributeClassifier.load(folder / "classifier.safetensors")


def generate(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], *, seed: int,
    guidance: float = GUIDANCE, steps: int = STEPS, eta: float = 0.0, batch: int = 64,
) -> Tensor:  # fmt: skip
    """Images (B, 3, 32, 32) in [0, 1], one per prompt."""
    generator = torch.Generator().manual_seed(seed)
    parts: list[Tensor] = []
    for start in range(0, len(prompts), batch):
        parts.append(
            pipeline(
                list(prompts[start : start + batch]), num_inference_steps=steps, guidance_scale=guidance, eta=eta,
                generator=generator, output_type="pt", height=32, width=32,
            ).images
        )  # fmt: skip
    return torch.cat(parts)


def caption_accuracy(
    pipeline: StableDiffusionPipeline, classifier: AttributeClassifier, prompts: Sequence[str], samples: int,
    seed: int, eta: float = 0.0,
) -> dict[str, float]:  # fmt: skip
    """Share of samples whose color, shape, form and all three the classifier reads as the caption says."""
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    return read_accuracy(classifier, generate(pipeline, repeated, seed=seed, eta=eta), repeated)


def read_accuracy(classifier: AttributeClassifier, images: Tensor, prompts: Sequence[str]) -> dict[str, float]:
    """The same for images that were drawn already, one per prompt."""
    wanted = [parse_caption(prompt) for prompt in prompts]
    color = torch.tensor([list(COLORS).index(attributes.color or "") for attributes in wanted])
    shape = torch.tensor([SHAPES.index(attributes.shape or "") for attributes in wanted])
    form = torch.tensor([FORMS.index(attributes.form or "") for attributes in wanted])
    with torch.no_grad():
        return accuracy(classifier(images), color, shape, form)


def objects_in(images: Tensor) -> list[int]:
    """Number of connected objects of at least 8 pixels in each image.

    The classifier knows no form but small, big and two, and reads three objects as two: this counts them.
    """
    counts: list[int] = []
    for mask in (objectness(images) > 0.5).numpy():
        labels, found = ndimage.label(mask)
        counts.append(sum(int((labels == label).sum()) >= 8 for label in range(1, found + 1)))
    return counts


def exact_pairs(pipeline: StableDiffusionPipeline, prompts: Sequence[str], samples: int, seed: int) -> float:
    """Share of samples of the captions that say "two" which show exactly two objects."""
    repeated = [prompt for prompt in prompts if prompt.startswith("two ") for _ in range(samples)]
    counts = objects_in(generate(pipeline, repeated, seed=seed))
    return sum(count == 2 for count in counts) / len(counts)


def memoryless_correlation(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], *, eta: float = 1.0, pairs: int = 24, seed: int = 0
) -> float:
    """Correlation of terminal latents between two rollouts that share their initial noise (docs/method.md section 1).

    Pooled over latent dimensions and prompts after subtracting the mean of each prompt, no guidance, 50 steps.
    """
    products, squares = 0.0, 0.0
    for number, prompt in enumerate(prompts):
        generator = torch.Generator().manual_seed(seed + number)
        start = torch.randn(pairs, 4, 8, 8, generator=generator)
        ends = [
            pipeline(
                [prompt] * pairs, num_inference_steps=STEPS, guidance_scale=1.0, eta=eta, latents=start.clone(),
                generator=generator, output_type="latent", height=32, width=32,
            ).images
            for _ in range(2)
        ]  # fmt: skip
        first, second = (end - end.mean(0) for end in ends)
        products += float((first * second).sum())
        squares += float((first.square().sum() + second.square().sum()) / 2)
    return products / squares


def measure(pipeline: StableDiffusionPipeline, classifier: AttributeClassifier, *, seed: int) -> Quality:
    """All gates; about one minute on one core."""
    evaluation = prompts_path("evaluation").read_text().splitlines()
    train = prompts_path("train").read_text().splitlines()
    measured = {"vae_psnr": psnr_of(pipeline.vae, seed)}
    for name, share in classifier_accuracy(classifier, seed + 1).items():
        measured[f"classifier_{name}"] = share
    for name, share in caption_accuracy(pipeline, classifier, evaluation, 12, seed + 2).items():
        measured[f"heldout_{name}"] = share
    for name, share in caption_accuracy(pipeline, classifier, train, 2, seed + 3).items():
        measured[f"train_{name}"] = share
    for name, share in caption_accuracy(pipeline, classifier, evaluation, 4, seed + 4, eta=1.0).items():
        measured[f"heldout_eta1_{name}"] = share
    measured["heldout_exact_pairs"] = exact_pairs(pipeline, evaluation, 8, seed + 6)
    measured["memoryless_correlation"] = memoryless_correlation(pipeline, evaluation[:4], seed=seed + 5)
    rounded = {name: round(value, 4) for name, value in measured.items()}
    return Quality(rounded, AT_LEAST, AT_MOST)


def save_samples(pipeline: StableDiffusionPipeline, path: Path, *, seed: int, columns: int = 6) -> None:
    """A picture to look at: one row per held-out caption, its name on the left, samples at guidance 5."""
    prompts = prompts_path("evaluation").read_text().splitlines()
    sheet_of(generate(pipeline, [prompt for prompt in prompts for _ in range(columns)], seed=seed), prompts).save(
        path, optimize=True
    )


def sheet_of(images: Tensor, prompts: Sequence[str]) -> Image.Image:
    """A sheet with a row for each prompt; `images` are row by row."""
    columns = len(images) // len(prompts)
    scale, label, cell = 2, 150, 32 * 2 + 2
    sheet = Image.new("RGB", (label + columns * cell, len(prompts) * cell), "white")
    draw = ImageDraw.Draw(sheet)
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    for row, prompt in enumerate(prompts):
        draw.text((4, row * cell + cell // 2 - 6), prompt, fill="black")
        for column in range(columns):
            picture = Image.fromarray(pixels[row * columns + column]).resize(
                (32 * scale,) * 2, Image.Resampling.NEAREST
            )
            sheet.paste(picture, (label + column * cell, row * cell))
    return sheet


def library_versions() -> dict[str, str]:
    """Versions that the weights were made with."""
    names = ("torch", "diffusers", "transformers", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
