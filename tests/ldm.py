"""Writes diffusers pipelines as single files in the original layout, as CompVis and Stability AI published theirs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

#: Names of diffusers -> names of the original code, within a residual block of the UNet.
_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_UNET = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_CLIP = {
    "self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}  # fmt: skip


def checkpoint(pipeline: Any, family: str = "sd1") -> dict[str, Tensor]:
    """Tensors of the file of a pipeline; `family` is `sd1`, `sd2` or `sdxl`."""
    tensors = {f"model.diffusion_model.{key}": value for key, value in unet(pipeline.unet).items()}
    tensors |= {f"first_stage_model.{key}": value for key, value in vae(pipeline.vae).items()}
    tensors["alphas_cumprod"] = pipeline.scheduler.alphas_cumprod  # one of the buffers that real files have besides
    if family == "sd2":
        tensors |= open_clip(pipeline.text_encoder, "cond_stage_model.model.")
    else:
        prefix = "cond_stage_model." if family == "sd1" else "conditioner.embedders.0."
        tensors |= clip(pipeline.text_encoder, f"{prefix}transformer.text_model.")
    if family == "sdxl":
        tensors |= open_clip(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
    return {key: value.detach().clone().contiguous() for key, value in tensors.items()}


def unet(network: Any) -> dict[str, Tensor]:
    """The UNet's tensors under their original names, without prefix."""
    layers = network.config.layers_per_block
    return {_unet_name(key, layers, network.state_dict()): value for key, value in network.state_dict().items()}


def _unet_name(key: str, layers: int, state: Mapping[str, Tensor]) -> str:
    for ours, theirs in _UNET.items():
        if key.startswith(f"{ours}."):
            return key.replace(ours, theirs, 1)
    if key.startswith("mid_block"):
        kind, number, rest = re.fullmatch(r"mid_block\.(\w+)\.(\d+)\.(.+)", key).groups()  # type: ignore[union-attr]
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(number)}.{_inner(kind, rest)}"
    side, block, kind, number, rest = re.fullmatch(  # type: ignore[union-attr]
        r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", key
    ).groups()
    first = int(block) * (layers + 1)
    if kind == "downsamplers":
        return f"input_blocks.{first + layers + 1}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":
        attends = f"up_blocks.{block}.attentions.0.norm.weight" in state
        return f"output_blocks.{first + layers}.{2 if attends else 1}.{rest}"
    place = f"input_blocks.{first + int(number) + 1}" if side == "down" else f"output_blocks.{first + int(number)}"
    return f"{place}.{1 if kind == 'attentions' else 0}.{_inner(kind, rest)}"


def _inner(kind: str, rest: str) -> str:
    if kind == "attentions":
        return rest
    name, _, parameter = rest.rpartition(".")
    return f"{_RESNET[name]}.{parameter}"


def vae(network: Any) -> dict[str, Tensor]:
    """The autoencoder's tensors under their original names, without prefix; its attention projects by convolutions."""
    blocks, found = len(network.config.block_out_channels), {}
    for key, value in network.state_dict().items():
        name = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{blocks - 1 - int(m[1])}.block", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        place, attention, rest = name.partition("mid_block.attentions.0.")
        if attention:
            part, _, parameter = rest.rpartition(".")
            name = f"{place}mid.attn_1.{_ATTENTION[part]}.{parameter}"
            value = value[:, :, None, None] if value.ndim == 2 else value
        found[name] = value
    return found


def clip(network: Any, prefix: str) -> dict[str, Tensor]:
    """A text encoder of OpenAI's CLIP as transformers once saved it, with its position ids."""
    state = {f"{prefix}{key.removeprefix('text_model.')}": value for key, value in network.state_dict().items()}
    positions = network.config.max_position_embeddings
    return {**state, f"{prefix}embeddings.position_ids": torch.arange(positions)[None]}


def open_clip(network: Any, prefix: str) -> dict[str, Tensor]:
    """A text encoder in OpenCLIP's layout: one matrix for query, key and value, the projection transposed."""
    state = {key.removeprefix("text_model."): value for key, value in network.state_dict().items()}
    width = network.config.hidden_size
    found = {
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "text_projection": state.get("text_projection.weight", torch.zeros(width, width)).T,
        "logit_scale": torch.tensor(4.6),
    }
    for layer in range(network.config.num_hidden_layers):
        ours, theirs = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for name, original in _CLIP.items():
            for parameter in ("weight", "bias"):
                found[f"{theirs}.{original}.{parameter}"] = state[f"{ours}.{name}.{parameter}"]
        for parameter in ("weight", "bias"):
            parts = [state[f"{ours}.self_attn.{part}_proj.{parameter}"] for part in "qkv"]
            found[f"{theirs}.attn.in_proj_{parameter}"] = torch.cat(parts)
    return {prefix + key: value for key, value in found.items()}
