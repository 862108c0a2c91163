"""Text encoders that leave the device between prompts, and the prompts that they have read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from amsd.diffusion.families.base import Family
from amsd.diffusion.guidance import Conditioning, TextCondition

ROOM = 4 * 2**30
"""Bytes of encoded prompts that are kept in main memory: about 800 of Stable Diffusion 3 with T5."""


def send_away(family: Family) -> None:
    """Move the text encoders to main memory; `on_device` brings them back for a while."""
    for encoder in family.text_encoders:
        encoder.to("cpu")


@contextmanager
def on_device(family: Family) -> Iterator[None]:
    """Inside, the text encoders lie where the denoiser does; those that lay elsewhere go back afterwards."""
    away = [encoder for encoder in family.text_encoders if _device(encoder) != family.device]
    for encoder in away:
        encoder.to(family.device)
    try:
        yield
    finally:
        for encoder in away:
            encoder.to("cpu")


class ReadPrompts:
    """Encodes each prompt once and alone, and keeps what was read last in main memory.

    Alone, so that an embedding does not depend on the others of its batch: a resumed run reads them in other batches.
    """

    def __init__(self, family: Family, negative_prompt: str, room: int = ROOM) -> None:
        self._family = family
        self._room = room
        self._kept: OrderedDict[str, TextCondition] = OrderedDict()
        with on_device(family):
            self._negative = family.encode_negative(negative_prompt, 1)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Conditioning:
        """Prompts and the negative prompt, one row each, on the device."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._kept]
        found = {prompt: self._kept[prompt] for prompt in prompts if prompt in self._kept}
        if new:
            with on_device(self._family):
                found |= {prompt: self._family.encode([prompt]).map(lambda value: value.cpu()) for prompt in new}
        for prompt in dict.fromkeys(prompts):
            self._kept[prompt] = found[prompt]
            self._kept.move_to_end(prompt)
        while len(self._kept) > 1 and sum(map(_bytes, self._kept.values())) > self._room:
            self._kept.popitem(last=False)
        rows = TextCondition.cat([found[prompt] for prompt in prompts])
        device, count = self._family.device, len(prompts)
        negative = self._negative.map(lambda value: value.to(device).expand(count, *value.shape[1:]))
        return Conditioning(rows.map(lambda value: value.to(device)), negative)


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _bytes(condition: TextCondition) -> int:
    return sum(tensor.numel() * tensor.element_size() for _, tensor in condition.tensors())
