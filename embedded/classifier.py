"""Training stage 1: the attribute classifier."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from amsd.shapes.classifier import AttributeClassifier, accuracy
from embedded.combinations import all_combinations
from embedded.scenes import Scenes, object_coverage, render, sample_scenes

log = logging.getLogger(__name__)


def train_classifier(path: Path, *, steps: int, batch: int, seed: int, device: str) -> dict[str, Any]:
    """Train on freshly drawn scenes of all combinations, write float16 weights to `path`, return what was measured."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    classifier = AttributeClassifier().to(device)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    curve: list[tuple[int, float]] = []
    for step in range(1, steps + 1):
        scenes = sample_scenes(all_combinations(), batch, generator)
        images = disturb(render(scenes, device), generator)
        loss = _loss(classifier, images, scenes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps:
            curve.append((step, round(loss.item(), 4)))
            log.info("classifier step %d/%d loss %.4f", step, steps, loss.item())
    classifier.save(path)
    return {"curve": curve, "accuracy": measure(AttributeClassifier.load(path), seed + 1)}


def measure(classifier: AttributeClassifier, seed: int, count: int = 2000) -> dict[str, float]:
    """Accuracy per attribute on clean fresh renders of all combinations."""
    scenes = sample_scenes(all_combinations(), count, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return accuracy(classifier(render(scenes)), scenes.color, scenes.shape, scenes.form)


def disturb(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur, fade and add noise by random amounts, so that images of the generator are not foreign to the classifier."""
    count = images.shape[0]

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(images.device)

    coarse = functional.interpolate(functional.avg_pool2d(images, 2), scale_factor=2, mode="bilinear")
    images = images.lerp(coarse, draw(count, 1, 1, 1).square())
    images = 0.5 + (images - 0.5) * (0.75 + 0.4 * draw(count, 1, 1, 1)) + 0.1 * (draw(count, 3, 1, 1) - 0.5)
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    return (images + 0.12 * draw(count, 1, 1, 1).square() * noise).clamp(0, 1)


def _loss(classifier: AttributeClassifier, images: Tensor, scenes: Scenes) -> Tensor:
    readings = classifier(images)
    # Label smoothing keeps the probabilities, and with them the gradient of rewards, off saturation.
    losses = [
        functional.cross_entropy(logits, target.to(images.device), label_smoothing=0.02)
        for logits, target in (
            (readings.color, scenes.color),
            (readings.shape, scenes.shape),
            (readings.form, scenes.form),
        )
    ]
    share = object_coverage(scenes).mean((1, 2))
    geometry = torch.cat([scenes.position(), share.unsqueeze(1)], dim=1).to(images.device)
    return torch.stack(losses).sum() + functional.mse_loss(readings.geometry, geometry)
