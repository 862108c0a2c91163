"""The parts of the embedded flow-matching model: a Stable Diffusion 3 pipeline in miniature, of diffusers' classes."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from amsd.shapes import pipeline_path
from embedded.networks import LATENT_CHANNELS, LATENT_SIZE, build_tokenizer

TEXT_LENGTH = 8
"""Tokens of a caption: the longest, "a small red circle", has six with its two ends."""
TEXT_WIDTHS = (64, 32)
"""Widths of the two CLIP encoders; side by side they are the context of the transformer."""
WIDTH, HEADS, LAYERS = 120, 5, 6


def build_flow_tokenizer() -> CLIPTokenizer:
    """The tokenizer of the UNet model, cut to the length of a caption: each token costs attention in every layer."""
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = TEXT_LENGTH
    return tokenizer


def build_flow_text_encoder(tokenizer: CLIPTokenizer, width: int) -> CLIPTextModelWithProjection:
    """CLIP text model of 2 layers; the pipeline reads the hidden states of the first and the projected last one."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=width // 16, max_position_embeddings=TEXT_LENGTH, projection_dim=width,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config)


def build_transformer() -> SD3Transformer2DModel:
    """Velocity predictor on (B, 4, 8, 8) latents in patches of 2x2, about 3.1 M parameters.

    Queries and keys are normalized, as in SD3.5: bounded attention is what keeps the velocity smooth.
    """
    return SD3Transformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=LAYERS,
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        joint_attention_dim=sum(TEXT_WIDTHS),
        caption_projection_dim=WIDTH,
        pooled_projection_dim=sum(TEXT_WIDTHS),
        pos_embed_max_size=LATENT_SIZE // 2,
        qk_norm="rms_norm",
    )


def build_networks() -> dict[str, nn.Module]:
    """Transformer and both text encoders, untrained, by their names in the pipeline."""
    tokenizer = build_flow_tokenizer()
    first, second = (build_flow_text_encoder(tokenizer, width) for width in TEXT_WIDTHS)
    return {"transformer": build_transformer(), "text_encoder": first, "text_encoder_2": second}


def load_vae() -> AutoencoderKL:
    """The autoencoder of the UNet model in float32, its latents at unit variance.

    A flow forgets its first noise whatever the variance of the data, so it needs no smaller scale.
    """
    vae = AutoencoderKL.from_pretrained(pipeline_path() / "vae", torch_dtype=torch.float32)
    vae.register_to_config(scaling_factor=1.0, shift_factor=0.0)
    return vae.eval()


def assemble_flow(networks: dict[str, Any], vae: AutoencoderKL, shift: float) -> StableDiffusion3Pipeline:
    """Put the parts into diffusers' pipeline, without a T5 encoder."""
    pipeline = StableDiffusion3Pipeline(
        **networks, vae=vae, tokenizer=build_flow_tokenizer(), tokenizer_2=build_flow_tokenizer(),
        text_encoder_3=None, tokenizer_3=None, scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_flow(networks: dict[str, nn.Module], path: Path, shift: float) -> None:
    """Write the pipeline folder in float16, from networks of its own (they are halved in place).

    The text encoders hold float16 values in float32 files, as in `networks.save_half`.
    """
    halved = {name: network.half() for name, network in networks.items()}
    halved |= {name: network.float() for name, network in halved.items() if name != "transformer"}
    assemble_flow(halved, load_vae().half(), shift).save_pretrained(path, safe_serialization=True)
    file = path / "vae" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)  # where this machine has the other embedded model
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def encode(networks: dict[str, nn.Module], ids: Tensor) -> tuple[Tensor, Tensor]:
    """Context (B, 8, 96) and pooled embedding (B, 96) of token ids (B, 8), as the pipeline makes them."""
    outputs = [networks[name](ids, output_hidden_states=True) for name in ("text_encoder", "text_encoder_2")]
    context = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    return context, torch.cat([output.text_embeds for output in outputs], dim=-1)


class CountedPadding:
    """Joint attention in which the last token of the context stands for a given number of equal tokens.

    Without a T5 encoder diffusers appends `max_sequence_length` zero tokens to the context (256 unless told). The
    context has no positions, so equal tokens stay equal through all layers, and n of them are one key whose logit is
    greater by log n. So a model learns at the price of one token to draw the same image whatever that number is.
    """

    def __init__(self) -> None:
        self.bias: Tensor | None = None

    def set_counts(self, counts: Tensor, tokens: int) -> None:
        """`counts` (B,) of the last of `tokens` keys in each sample; 0 hides it."""
        self.bias = counts.new_zeros(len(counts), 1, 1, tokens, dtype=torch.float32)
        self.bias[..., -1] = counts.float().log().clamp_min(-1e4).view(-1, 1, 1)

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **unused: Any
    ) -> tuple[Tensor, Tensor]:
        """Attend over image tokens (B, I, D) and context tokens (B, C, D) together."""
        image = _heads(attn, hidden_states, attn.to_q, attn.to_k, attn.to_v, attn.norm_q, attn.norm_k)
        context = _heads(
            attn, encoder_hidden_states, attn.add_q_proj, attn.add_k_proj, attn.add_v_proj,
            attn.norm_added_q, attn.norm_added_k,
        )  # fmt: skip
        query, key, value = (torch.cat(pair, dim=2) for pair in zip(image, context, strict=True))
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=self.bias)
        mixed = mixed.transpose(1, 2).flatten(2)
        split = hidden_states.shape[1]
        image_out, context_out = mixed[:, :split], mixed[:, split:]
        if not attn.context_pre_only:
            context_out = attn.to_add_out(context_out)
        return attn.to_out[0](image_out), context_out


def _heads(
    attn: Any, states: Tensor, to_q: Any, to_k: Any, to_v: Any, norm_q: Any, norm_k: Any
) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (
        project(states).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for project in (to_q, to_k, to_v)
    )
    return norm_q(query), norm_k(key), value


def draw_counts(count: int, generator: torch.Generator) -> Tensor:
    """Numbers of zero tokens (B,): a third none, a third diffusers' 256, a third between 1 and 512."""
    kind = torch.randint(3, (count,), generator=generator)
    between = (torch.rand(count, generator=generator) * math.log(512)).exp().round().long()
    return torch.where(kind == 0, 0, torch.where(kind == 1, 256, between))
