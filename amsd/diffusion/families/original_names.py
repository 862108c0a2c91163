"""Names of a transformer's layers in the original layouts of Stable Diffusion 3 and FLUX, which LoRA files use too.

Queries, keys and values are one layer there; so are, in a single block of FLUX, these and the MLP. Layers whose rows
stand in another order (the modulation before an output) are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Joined = Mapping[str, tuple[str, ...]]
"""Name in the original layout -> names in diffusers of the layers whose outputs it has, one after the other."""

_QKV = ("to_q", "to_k", "to_v")
_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")


def sd3_names(transformer: Any) -> Joined:
    """Of an `SD3Transformer2DModel` of any depth."""
    return {
        "x_embedder.proj": ("pos_embed.proj",), "context_embedder": ("context_embedder",),
        **_embedder("t_embedder.mlp.0", "t_embedder.mlp.2", "timestep_embedder"),
        **_embedder("y_embedder.mlp.0", "y_embedder.mlp.2", "text_embedder"), "final_layer.linear": ("proj_out",),
        **dict(_joint_blocks(transformer)),
    }  # fmt: skip


def flux_names(transformer: Any) -> Joined:
    """Of a `FluxTransformer2DModel` of any depth."""
    return {
        "img_in": ("x_embedder",), "txt_in": ("context_embedder",), "final_layer.linear": ("proj_out",),
        **_embedder("time_in.in_layer", "time_in.out_layer", "timestep_embedder"),
        **_embedder("vector_in.in_layer", "vector_in.out_layer", "text_embedder"),
        **_embedder("guidance_in.in_layer", "guidance_in.out_layer", "guidance_embedder"),
        **dict(_double_blocks(transformer)), **dict(_single_blocks(transformer)),
    }  # fmt: skip


def _embedder(first: str, second: str, own: str) -> dict[str, tuple[str, ...]]:
    return {first: (f"time_text_embed.{own}.linear_1",), second: (f"time_text_embed.{own}.linear_2",)}


def _joint_blocks(transformer: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    last = len(transformer.transformer_blocks) - 1
    for index in range(last + 1):
        own = f"transformer_blocks.{index}"
        x, context = f"joint_blocks.{index}.x_block", f"joint_blocks.{index}.context_block"
        for attention in ("attn", "attn2"):
            yield f"{x}.{attention}.qkv", tuple(f"{own}.{attention}.{part}" for part in _QKV)
            yield f"{x}.{attention}.proj", (f"{own}.{attention}.to_out.0",)
        yield f"{context}.attn.qkv", tuple(f"{own}.attn.{part}" for part in _ADDED)
        yield f"{context}.attn.proj", (f"{own}.attn.to_add_out",)
        for block, forward in ((x, "ff"), (context, "ff_context")):
            yield f"{block}.mlp.fc1", (f"{own}.{forward}.net.0.proj",)
            yield f"{block}.mlp.fc2", (f"{own}.{forward}.net.2",)
        yield f"{x}.adaLN_modulation.1", (f"{own}.norm1.linear",)
        if index < last:  # the last one is a norm before an output
            yield f"{context}.adaLN_modulation.1", (f"{own}.norm1_context.linear",)


def _double_blocks(transformer: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    for index in range(len(transformer.transformer_blocks)):
        own, other = f"transformer_blocks.{index}", f"double_blocks.{index}"
        yield f"{other}.img_attn.qkv", tuple(f"{own}.attn.{part}" for part in _QKV)
        yield f"{other}.txt_attn.qkv", tuple(f"{own}.attn.{part}" for part in _ADDED)
        yield f"{other}.img_attn.proj", (f"{own}.attn.to_out.0",)
        yield f"{other}.txt_attn.proj", (f"{own}.attn.to_add_out",)
        for block, forward, norm in (("img", "ff", "norm1"), ("txt", "ff_context", "norm1_context")):
            yield f"{other}.{block}_mlp.0", (f"{own}.{forward}.net.0.proj",)
            yield f"{other}.{block}_mlp.2", (f"{own}.{forward}.net.2",)
            yield f"{other}.{block}_mod.lin", (f"{own}.{norm}.linear",)


def _single_blocks(transformer: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    for index in range(len(transformer.single_transformer_blocks)):
        own, other = f"single_transformer_blocks.{index}", f"single_blocks.{index}"
        yield f"{other}.linear1", (*(f"{own}.attn.{part}" for part in _QKV), f"{own}.proj_mlp")
        yield f"{other}.linear2", (f"{own}.proj_out",)
        yield f"{other}.modulation.lin", (f"{own}.norm.linear",)
