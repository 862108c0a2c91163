"""Training stage 2: the autoencoder, its standardized latents, and the cache of latents that the UNet learns from."""

import logging
import math
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from embedded.combinations import all_combinations, train_combinations
from embedded.networks import build_vae
from embedded.scenes import Scenes, object_coverage, render, sample_scenes

log = logging.getLogger(__name__)

LATENT_NOISE = 0.02
"""Sd of the noise that the decoder learns to ignore, in units of the raw latent (RGB in [-1, 1])."""


def train_vae(path: Path, *, steps: int, batch: int, seed: int, device: str) -> dict[str, Any]:
    """Train, standardize the latents, write the state to `path`, return what was measured."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    vae = build_vae().to(device)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2.5e-3, total_steps=steps, pct_start=0.08)
    curve: list[tuple[int, float]] = []
    for step in range(1, steps + 1):
        scenes = sample_scenes(train_combinations(), batch, generator)
        loss, error = _loss(vae, scenes, device)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps:
            psnr = -10 * math.log10(error.item())
            curve.append((step, round(psnr, 2)))
            log.info("vae step %d/%d loss %.5f psnr %.2f dB", step, steps, loss.item(), psnr)
    standardize(vae, encode(vae, render(sample_scenes(train_combinations(), 4096, generator)), device))
    save_file({name: value.cpu().contiguous() for name, value in vae.state_dict().items()}, path)
    return {"curve": curve, "psnr": psnr_of(vae, seed + 1, device=device)}


def _loss(vae: AutoencoderKL, scenes: Scenes, device: str) -> tuple[Tensor, Tensor]:
    """Training loss, and the mean squared error of images in [0, 1]."""
    images = 2 * render(scenes, device) - 1
    near_object = functional.max_pool2d(object_coverage(scenes).to(device).unsqueeze(1), 3, stride=1, padding=1)
    latent = vae.encode(images).latent_dist.mean
    decoded = vae.decode(latent + LATENT_NOISE * torch.randn_like(latent)).sample
    squared = (decoded - images).square()
    # Three latent channels are pulled towards the mean color of their patch: without it color is learned last.
    pull = functional.mse_loss(latent[:, :3], functional.avg_pool2d(images, 4))
    small = latent.square().mean()
    weighted = (squared * (1 + 3 * near_object)).mean()
    return weighted + 0.1 * pull + 1e-3 * small, squared.mean().detach() / 4


@torch.no_grad()
def standardize(vae: AutoencoderKL, latents: Tensor) -> None:
    """Fold mean and sd of the raw latents (B, 4, 8, 8) into the two 1x1 convolutions, leaving images unchanged.

    z' = (z - m)/s leaves quant_conv, and post_quant_conv undoes it. The encoder's variance becomes the constant noise
    of the training.
    """
    mean, sd = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = mean.shape[0]
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:channels] /= sd.view(-1, 1, 1, 1)
    quant.bias[:channels] = (quant.bias[:channels] - mean) / sd
    quant.weight[channels:] = 0
    quant.bias[channels:] = 2 * (LATENT_NOISE / sd).log()
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= sd.view(1, -1, 1, 1)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor, device: str, batch: int = 256) -> Tensor:
    """Mean latents (B, 4, 8, 8) of images (B, 3, 32, 32) in [0, 1], without the scaling factor."""
    parts = [vae.encode(2 * part.to(device) - 1).latent_dist.mean for part in images.split(batch)]
    return torch.cat(parts)


@torch.no_grad()
def psnr_of(vae: AutoencoderKL, seed: int, count: int = 720, device: str = "cpu") -> float:
    """Peak signal-to-noise ratio of reconstructions, dB, mean over fresh scenes of all combinations."""
    images = render(sample_scenes(all_combinations(), count, torch.Generator().manual_seed(seed)), device)
    decoded = torch.cat([vae.decode(part).sample for part in encode(vae, images, device).split(256)])
    error = ((decoded / 2 + 0.5).clamp(0, 1) - images).square().mean((1, 2, 3))
    return float((-10 * error.log10()).mean())


def cache_latents(vae: AutoencoderKL, path: Path, *, count: int, seed: int, device: str) -> None:
    """Encode `count` scenes of the training combinations once: the UNet then never pays for the autoencoder."""
    generator = torch.Generator().manual_seed(seed)
    latents: list[Tensor] = []
    labels: list[Tensor] = []
    for start in range(0, count, 2048):
        scenes = sample_scenes(train_combinations(), min(2048, count - start), generator)
        latents.append(encode(vae, render(scenes), device).half().cpu())
        labels.append(torch.stack([scenes.color, scenes.shape, scenes.form], dim=1))
        log.info("latents %d/%d", start + len(scenes), count)
    save_file({"latents": torch.cat(latents), "labels": torch.cat(labels)}, path)
