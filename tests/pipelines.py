"""Tiny pipelines with random weights, in the architectures of SD, SDXL, SD3 and FLUX: 16x16 images on the CPU.

Equal seeds give equal weights. For tests that need trained weights there is `embedded:shapes`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

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


def stable_diffusion_3(seed: int = 0, t5: bool = True, **scheduler: Any) -> StableDiffusion3Pipeline:
    """A Stable Diffusion 3 pipeline: 16x8x8 latents in patches of 2, 16x16 images, two CLIP encoders and T5.

    `scheduler` are options of its flow-matching scheduler; by default a shift of 3.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=LATENT, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=2 * WIDTH, caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH, pos_embed_max_size=12, qk_norm="rms_norm", dual_attention_layers=(0,),
    ).eval()  # fmt: skip
    _fill_zeros(transformer)
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        vae=_vae(latent_channels=16, shift_factor=0.0609, scaling_factor=1.5305, use_quant_conv=False,
                 use_post_quant_conv=False),
        text_encoder=CLIPTextModelWithProjection(_text_config(tokenizer)).eval(),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer)).eval(),
        text_encoder_3=_t5() if t5 else None,
        tokenizer=tokenizer,
        tokenizer_2=build_tokenizer(),
        tokenizer_3=t5_tokenizer() if t5 else None,
        scheduler=FlowMatchEulerDiscreteScheduler(**(scheduler or {"shift": 3.0})),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def flux(seed: int = 0, guided: bool = True, **scheduler: Any) -> FluxPipeline:
    """A FLUX pipeline: packed latents, CLIP's pooled text and T5; its pipeline draws 1024 pixels unless told."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=2 * WIDTH, pooled_projection_dim=WIDTH, guidance_embeds=guided, axes_dims_rope=(4, 6, 6),
    ).eval()  # fmt: skip
    _fill_zeros(transformer)
    pipeline = FluxPipeline(
        transformer=transformer,
        vae=_vae(latent_channels=4, shift_factor=0.1159, scaling_factor=0.3611, use_quant_conv=False,
                 use_post_quant_conv=False),
        text_encoder=CLIPTextModel(_text_config(tokenizer)).eval(),
        text_encoder_2=_t5(),
        tokenizer=tokenizer,
        tokenizer_2=t5_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(**(scheduler or {"use_dynamic_shifting": True, "shift": 3.0})),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def t5_tokenizer() -> T5Tokenizer:
    """A unigram tokenizer of letters with T5's special tokens."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -1.0)]
    letters = [(letter, -2.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    return T5Tokenizer(vocab=pieces + letters, extra_ids=0, model_max_length=512)


def _t5(width: int = 2 * WIDTH) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=len(t5_tokenizer()), d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    ).eval()


def _fill_zeros(network: torch.nn.Module) -> None:
    """Fresh transformers begin with zeros where they modulate, so that prompts and times would mean nothing."""
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)


def ddim(prediction_type: str = "epsilon") -> DDIMScheduler:
    """DDIM with Stable Diffusion's betas, as SD's own configuration has it but without clipping."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=prediction_type,
    )  # fmt: skip


def _vae(attention: bool = False, **options: Any) -> AutoencoderKL:
    settings: dict[str, Any] = {"latent_channels": 4, **options}
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        sample_size=2 * LATENT, mid_block_add_attention=attention, **settings,
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
