"""Stable Diffusion XL: two text encoders, pooled embedding and image-size ids as extra conditions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amsd.diffusion.families.published import CLIP_G_POOLED, CLIP_L, VAE, Published
from amsd.diffusion.families.unet import UNetFamily
from amsd.diffusion.guidance import TextCondition


class StableDiffusionXL(UNetFamily):
    """`StableDiffusionXLPipeline`."""

    text_encoder_names = ("text_encoder", "text_encoder_2")
    scales_by_statistics = True
    published = (
        Published(
            names=("stable-diffusion-xl-base",),
            denoiser={
                "sample_size": 128, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20),
                "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
            },
            parts={"text_encoder": CLIP_L, "text_encoder_2": CLIP_G_POOLED, "vae": VAE},
            stored_bytes=4,
        ),
    )  # fmt: skip

    def _encode_window(self, prompts: Sequence[str]) -> TextCondition:
        """Token embeddings (B, L, D), pooled embeddings (B, P) and time ids (B, 6)."""
        embeddings, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
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
        height, width = map(float, self.size)
        ids = torch.tensor([[height, width, 0.0, 0.0, height, width]], device=embeddings.device)
        return TextCondition(embeddings, {"text_embeds": pooled, "time_ids": ids.expand(len(embeddings), -1)})
