"""What differs between model families: text encoding, latent shape, extra conditions, decoding.

A new family (SD3, FLUX) is one more class here; nothing in `amsd.matching` knows which family it works for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from amsd.diffusion.guidance import Network, TextCondition
from amsd.errors import UsageError


class Adapter(Protocol):
    """The family-specific half of a latent diffusion pipeline."""

    @property
    def pipeline(self) -> Any:
        """The diffusers pipeline behind it."""
        ...

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent, such as (4, 64, 64)."""
        ...

    def encode(self, prompts: Sequence[str]) -> TextCondition:
        """Encode prompts, as the family's pipeline would; one row each, float32."""
        ...

    def encode_empty(self, count: int) -> TextCondition:
        """What the family's pipeline uses as unconditional input, `count` rows."""
        ...

    def network(self, module: nn.Module) -> Network:
        """A denoising module of this family as a function of (x, timesteps, condition)."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, *latent_shape) to images (B, 3, H, W) in float32, about [0, 1] but not clamped."""
        ...


DECODED_PIXELS = 2 * 512 * 512
"""Pixels that are decoded at once: two images of 512 x 512."""


def image_size(adapter: Adapter) -> tuple[int, int]:
    """Height and width in pixels of the images that an adapter decodes."""
    scale = int(getattr(adapter.pipeline, "vae_scale_factor", 8))
    return adapter.latent_shape[-2] * scale, adapter.latent_shape[-1] * scale


@dataclass(frozen=True)
class UNetFamily:
    """What pipelines with a UNet2DConditionModel and an AutoencoderKL have in common."""

    pipeline: Any

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(in_channels, sample_size, sample_size) of the UNet."""
        return _unet_latent_shape(self.pipeline.unet.config)

    def network(self, module: nn.Module) -> Network:
        """The UNet as a function."""
        return _unet_network(module)

    def decode(self, latents: Tensor) -> Tensor:
        """AutoencoderKL in float32, whatever the networks' precision."""
        return _decode(self.pipeline.vae, latents)


class StableDiffusionAdapter(UNetFamily):
    """Stable Diffusion 1.x and 2.x: one text encoder."""

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextCondition:
        """Token embeddings of the prompts, (B, L, D)."""
        embeddings, _ = self.pipeline.encode_prompt(list(prompts), _device(self.pipeline), 1, False)
        return TextCondition(embeddings.float())

    def encode_empty(self, count: int) -> TextCondition:
        """Embedding of the empty string."""
        return self.encode([""]).map(lambda value: value.expand(count, *value.shape[1:]))


class StableDiffusionXLAdapter(UNetFamily):
    """Stable Diffusion XL: two text encoders, pooled embedding and image-size ids as extra conditions."""

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextCondition:
        """Token embeddings (B, L, D), pooled embeddings (B, P) and time ids (B, 6)."""
        embeddings, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), device=_device(self.pipeline), num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return self._condition(embeddings.float(), pooled.float())

    def encode_empty(self, count: int) -> TextCondition:
        """Zeros where the pipeline forces them for the empty prompt, else the encoded empty string."""
        encoded = self.encode([""])
        if self.pipeline.config.force_zeros_for_empty_prompt:
            zeros = torch.zeros_like(encoded.hidden_states), torch.zeros_like(encoded.added["text_embeds"])
            encoded = self._condition(*zeros)
        return encoded.map(lambda value: value.expand(count, *value.shape[1:]))

    def _condition(self, embeddings: Tensor, pooled: Tensor) -> TextCondition:
        # Original size, crop corner and target size, as the pipeline sets them by default.
        height, width = map(float, image_size(self))
        ids = torch.tensor([[height, width, 0.0, 0.0, height, width]], device=embeddings.device)
        return TextCondition(embeddings, {"text_embeds": pooled, "time_ids": ids.expand(len(embeddings), -1)})


FAMILIES: dict[str, type[StableDiffusionAdapter] | type[StableDiffusionXLAdapter]] = {
    "StableDiffusionPipeline": StableDiffusionAdapter,
    "StableDiffusionXLPipeline": StableDiffusionXLAdapter,
}


def adapter_for(pipeline: Any) -> Adapter:
    """The adapter of a loaded pipeline.

    Raises:
        UsageError: the family is not supported yet.
    """
    name = type(pipeline).__name__
    if name not in FAMILIES:
        raise UsageError(f"{name} is not supported; supported are {', '.join(sorted(FAMILIES))}.")
    return FAMILIES[name](pipeline)


def _unet_latent_shape(config: Any) -> tuple[int, ...]:
    size = config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return (config.in_channels, height, width)


def _unet_network(unet: nn.Module) -> Network:
    def network(x: Tensor, timesteps: Tensor, condition: TextCondition) -> Tensor:
        added = dict(condition.added) or None
        output: Tensor = unet(
            x, timesteps, encoder_hidden_states=condition.hidden_states, added_cond_kwargs=added, return_dict=False
        )[0]
        return output.to(x.dtype)

    return network


def _decode(vae: Any, latents: Tensor) -> Tensor:
    """In slices of `DECODED_PIXELS`: a decoder needs far more memory per image than the UNet does."""
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    rows = max(1, DECODED_PIXELS // (latents.shape[-2] * latents.shape[-1] * scale**2))
    with torch.autocast(latents.device.type, enabled=False):
        scaled = _unscaled(vae.config, latents.float())
        images = [vae.decode(part, return_dict=False)[0] for part in scaled.split(rows)]
    return torch.cat(images) / 2 + 0.5


def _unscaled(config: Any, latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) as the decoder takes them: by the statistics per channel where its configuration has them.

    Source: `StableDiffusionXLPipeline.__call__` of diffusers (Playground 2.5 has such statistics).
    """
    mean, deviation = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is None or deviation is None:
        return latents / float(config.scaling_factor)
    mean, deviation = (latents.new_tensor(value).view(1, -1, 1, 1) for value in (mean, deviation))
    return latents * deviation / float(config.scaling_factor) + mean


def _device(pipeline: Any) -> torch.device:
    device: torch.device = next(iter(pipeline.unet.parameters())).device
    return device
