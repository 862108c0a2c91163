"""Tiny pipelines with random weights, in the architectures of Stable Diffusion and SDXL: 16x16 images on the CPU.

Equal seeds give equal weights. For tests that need trained weights there is `embedded:shapes`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from amsd.shapes import pipeline_path

WIDTH = 16
LATENT = 8


def stable_diffusion(
    seed: int = 0,
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon",
    scheduler: Any = None,
    attention: bool = False,
) -> StableDiffusionPipeline:
    """A Stable Diffusion pipeline: 4x8x8 latents, 16x16 images, about 60 thousand UNet parameters.

    `attention` gives the VAE that of the real one.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    pipeline = StableDiffusionPipeline(
        vae=_vae(attention),
        text_encoder=CLIPTextModel(_text_config(tokenizer)).eval(),
        tokenizer=tokenizer,
        unet=_unet(WIDTH),
        scheduler=scheduler or ddim(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stable_diffusion_xl(seed: int = 0, second_width: int = WIDTH, attention: bool = False) -> StableDiffusionXLPipeline:
    """An SDXL pipeline: two text encoders, pooled embedding and time ids; 4x8x8 latents, 16x16 images.

    `second_width` is that of the second text encoder; `attention` gives the VAE that of the real one.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    time_width = 8
    unet = _unet(
        WIDTH + second_width,
        addition_embed_type="text_time",
        addition_time_embed_dim=time_width,
        projection_class_embeddings_input_dim=6 * time_width + second_width,
    )
    pipeline = StableDiffusionXLPipeline(
        vae=_vae(attention),
        text_encoder=CLIPTextModel(_text_config(tokenizer)).eval(),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer, second_width)).eval(),
        tokenizer=tokenizer,
        tokenizer_2=build_tokenizer(),
        unet=unet,
        scheduler=ddim("epsilon"),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_tokenizer() -> CLIPTokenizer:
    """The embedded model's tokenizer: CLIP's class, 16 tokens."""
    return CLIPTokenizer.from_pretrained(pipeline_path() / "tokenizer")


def ddim(prediction_type: str = "epsilon") -> DDIMScheduler:
    """DDIM with Stable Diffusion's betas, as SD's own configuration has it but without clipping."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=prediction_type,
    )  # fmt: skip


def _vae(attention: bool = False) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4,
        sample_size=2 * LATENT, mid_block_add_attention=attention,
    ).eval()  # fmt: skip


def _unet(text_width: int, **options: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=LATENT, in_channels=4, out_channels=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), block_out_channels=(8, 16), layers_per_block=1,
        cross_attention_dim=text_width, attention_head_dim=4, norm_num_groups=4, **options,
    ).eval()  # fmt: skip


def _text_config(tokenizer: CLIPTokenizer, width: int = WIDTH) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=tokenizer.model_max_length, projection_dim=width,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
