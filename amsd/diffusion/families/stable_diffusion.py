"""Stable Diffusion 1.x and 2.x: one text encoder."""

from __future__ import annotations

from collections.abc import Sequence

from amsd.diffusion.families.published import CLIP_L, VAE, Published
from amsd.diffusion.families.unet import UNetFamily
from amsd.diffusion.guidance import TextCondition


class StableDiffusion(UNetFamily):
    """`StableDiffusionPipeline`."""

    published = (
        Published(
            names=("stable-diffusion-v1", "CompVis/stable-diffusion-v1"),
            denoiser={"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
            parts={"text_encoder": CLIP_L, "vae": VAE},
            stored_bytes=4,
        ),
    )

    def _encode_window(self, prompts: Sequence[str]) -> TextCondition:
        """Token embeddings of the prompts, (B, L, D)."""
        embeddings, _ = self.pipeline.encode_prompt(list(prompts), self.device, 1, False)
        return TextCondition(embeddings.float())

    def encode_empty(self, count: int) -> TextCondition:
        """Embedding of the empty string."""
        return self.encode([""]).map(lambda value: value.expand(count, *value.shape[1:]))
