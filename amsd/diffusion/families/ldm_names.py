"""Names of a UNet's layers in the original layout of Stable Diffusion (LDM), which tools for LoRA files use too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_ENDS = {
    "conv_in": "input_blocks.0.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
_RESNET = {
    "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"
}  # fmt: skip


def ldm_names(unet: Any) -> dict[str, str]:
    """Name in diffusers -> name in LDM, of the layers and of what contains them, for a UNet of any depth."""
    return {**_ENDS, **dict(_blocks(unet))}


def _blocks(unet: Any) -> Iterator[tuple[str, str]]:
    number = 1
    for index, block in enumerate(unet.down_blocks):
        number = yield from _block(block, f"down_blocks.{index}", "input_blocks", number)
    if unet.mid_block is not None:
        yield from _middle(unet.mid_block)
    number = 0
    for index, block in enumerate(unet.up_blocks):
        number = yield from _block(block, f"up_blocks.{index}", "output_blocks", number)


def _block(block: Any, own: str, ldm: str, number: int) -> Any:
    """The layers of a block, numbered from `number` on; returns the next number.

    Going down, a sampler has a number of its own; going up, it comes last under that of the layers before it.
    """
    attentions = len(getattr(block, "attentions", None) or ())
    for index, _ in enumerate(block.resnets):
        yield from _resnet(f"{own}.resnets.{index}", f"{ldm}.{number}.0")
        if attentions:
            yield f"{own}.attentions.{index}", f"{ldm}.{number}.1"
        number += 1
    if getattr(block, "downsamplers", None):
        yield f"{own}.downsamplers.0.conv", f"{ldm}.{number}.0.op"
        number += 1
    if getattr(block, "upsamplers", None):
        yield f"{own}.upsamplers.0.conv", f"{ldm}.{number - 1}.{2 if attentions else 1}.conv"
    return number


def _middle(block: Any) -> Iterator[tuple[str, str]]:
    """The layers of the block in the middle, which alternate."""
    number, attentions = 0, len(getattr(block, "attentions", None) or ())
    for index, _ in enumerate(block.resnets):
        yield from _resnet(f"mid_block.resnets.{index}", f"middle_block.{number}")
        if index < attentions:
            yield f"mid_block.attentions.{index}", f"middle_block.{number + 1}"
        number += 2


def _resnet(own: str, ldm: str) -> Iterator[tuple[str, str]]:
    for name, other in _RESNET.items():
        yield f"{own}.{name}", f"{ldm}.{other}"
