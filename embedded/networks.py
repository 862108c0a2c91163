"""The parts of the embedded pipeline: a Stable-Diffusion pipeline in miniature, made of diffusers' own classes."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from embedded.combinations import vocabulary
from embedded.scenes import SIZE

TEXT_LENGTH = 16
TEXT_WIDTH = 64
LATENT_CHANNELS = 4
LATENT_SIZE = SIZE // 4
SCALING_FACTOR = 0.4
"""Sd of a latent channel as the UNet sees it; below 1, so that SD's betas forget the direction of most variance too."""
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def build_vae() -> AutoencoderKL:
    """Autoencoder 32x32x3 -> 8x8x4, 0.24 M parameters."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIZE,
        scaling_factor=SCALING_FACTOR,
        mid_block_add_attention=False,
    )


def build_unet() -> UNet2DConditionModel:
    """Noise predictor on (B, 4, 8, 8) latents with cross-attention at both resolutions, about 1.1 M parameters."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def build_tokenizer() -> CLIPTokenizer:
    """CLIP tokenizer with one token per word of the captions; other words fall into letters."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?-'"
    merges = _learn_merges(vocabulary())
    pieces = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges), BEGIN, END]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(
        vocab=vocab, merges=merges, model_max_length=TEXT_LENGTH,
        unk_token=END, bos_token=BEGIN, eos_token=END, pad_token=END,
    )  # fmt: skip


def _learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair encoding learned until every word is one token; the order of merges is the one CLIP applies."""
    split = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while any(len(pieces) > 1 for pieces in split):
        pairs = Counter(pair for pieces in split for pair in pairwise(pieces))
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        split = [_merge(pieces, best) for pieces in split]
    return merges


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """CLIP text model, 2 layers of width 64; its last hidden states (B, 16, 64) condition the UNet."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=TEXT_WIDTH, intermediate_size=2 * TEXT_WIDTH, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=TEXT_LENGTH, projection_dim=TEXT_WIDTH,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return CLIPTextModel(config)


def build_unet_networks() -> dict[str, nn.Module]:
    """UNet and text encoder, untrained, by their names in the pipeline."""
    text_encoder = build_text_encoder(build_tokenizer())
    return {"unet": build_unet(), "text_encoder": text_encoder}


def build_scheduler() -> DDIMScheduler:
    """DDIM with Stable Diffusion's betas on the trailing grid; the last step ends at alpha = 1, without noise."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=True, steps_offset=1, timestep_spacing="trailing", prediction_type="epsilon",
    )  # fmt: skip


def assemble(
    vae: AutoencoderKL, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer
) -> StableDiffusionPipeline:
    """Put the parts into diffusers' pipeline, without safety checker."""
    pipeline = StableDiffusionPipeline(
        vae=vae, unet=unet, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=build_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids (B, model_max_length) padded as the pipeline pads them."""
    encoded: dict[str, Any] = tokenizer(
        captions, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    ids: Tensor = encoded["input_ids"]
    return ids


def save_half(pipeline: StableDiffusionPipeline, path: Path) -> None:
    """Write the pipeline folder in float16 from copies: the networks in training keep float32.

    The text encoder holds float16 values in float32 files: transformers loads the precision of the file, diffusers
    float32, and the two would not fit together in a plain `from_pretrained`.
    """
    halved = assemble(
        _half(build_vae(), pipeline.vae), _half(build_unet(), pipeline.unet),
        _half(build_text_encoder(pipeline.tokenizer), pipeline.text_encoder).float(), pipeline.tokenizer,
    )  # fmt: skip
    halved.save_pretrained(path, safe_serialization=True)


def _half(fresh: Any, trained: Any) -> Any:
    fresh.load_state_dict(trained.state_dict())
    return fresh.half()
