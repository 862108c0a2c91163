"""The half of a family that reads prompts: its text encoders, and what they make of a text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import nn

from amsd.diffusion.guidance import TextCondition
from amsd.recipe import Model


@dataclass(frozen=True)
class TextLimit:
    """What a text encoder reads of a prompt."""

    tokenizer: Any
    tokens: int
    """At most so many, special ones included."""


def embedded(prompt: TextCondition, negative: TextCondition, pooled: str) -> dict[str, Any]:
    """What a pipeline is called with instead of prompts; `pooled` names the pooled embedding, where there is one."""
    arguments = {"prompt_embeds": prompt.hidden_states, "negative_prompt_embeds": negative.hidden_states}
    if pooled in prompt.added:
        arguments["pooled_prompt_embeds"] = prompt.added[pooled]
        arguments["negative_pooled_prompt_embeds"] = negative.added[pooled]
    return arguments


class Texts(ABC):
    """Prompts of a pipeline."""

    text_encoder_names: ClassVar[tuple[str, ...]] = ("text_encoder",)
    """Names of the text encoders in the pipeline; absent ones are left out."""

    pipeline: Any
    model: Model
    denoiser: Any

    @property
    @final
    def text_encoders(self) -> list[nn.Module]:
        """The text encoders that are there."""
        found = (self.pipeline.components.get(name) for name in self.text_encoder_names)
        return [module for module in found if module is not None]

    @property
    @final
    def device(self) -> torch.device:
        """Where the denoiser lies."""
        device: torch.device = next(iter(self.denoiser.parameters())).device
        return device

    @abstractmethod
    def blank_condition(self, device: str) -> TextCondition:
        """One prompt's condition in shape only, for counting operations."""

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> TextCondition:
        """Encode prompts, as the family's pipeline would; one row each, float32."""

    @abstractmethod
    def encode_empty(self, count: int) -> TextCondition:
        """What the family's pipeline uses as unconditional input, `count` rows."""

    @final
    def encode_negative(self, negative_prompt: str, count: int) -> TextCondition:
        """What guidance leads away from, `count` rows: a negative prompt, or the unconditional input without one."""
        if not negative_prompt:
            return self.encode_empty(count)
        return self.encode([negative_prompt]).map(lambda value: value.expand(count, *value.shape[1:]))

    @final
    def drawing_arguments(self, prompt: str, negative_prompt: str, count: int) -> dict[str, Any]:
        """Arguments of the pipeline's call for `count` pictures of a prompt: text, if the call reads all of it.

        Where encoders compute in half precision, the call would take their dtype for its noise, its latents and the
        decoder's input; with encoded prompts (`encode`) those stay in float32, as in training and evaluation.
        """
        if self.model.prompt_windows == 1 and self.model.precision == "fp32":
            negative = {"negative_prompt": negative_prompt} if negative_prompt else {}
            return {"prompt": prompt, "num_images_per_prompt": count} | negative
        return self.prompt_arguments(self.encode([prompt] * count), self.encode_negative(negative_prompt, count))

    @property
    @final
    def text_limits(self) -> dict[str, TextLimit]:
        """What each text encoder that is there reads of a prompt, by its name in the pipeline."""
        found = {}
        for name in self.text_encoder_names:
            tokenizer = getattr(self.pipeline, name.replace("text_encoder", "tokenizer"), None)
            if tokenizer is not None:
                found[name] = TextLimit(tokenizer, self._tokens_read(name))
        return found

    def _tokens_read(self, encoder: str) -> int:
        """Tokens of a prompt, special ones included, that a text encoder reads."""
        return int(getattr(self.pipeline, encoder.replace("text_encoder", "tokenizer")).model_max_length)

    @abstractmethod
    def prompt_arguments(self, prompt: TextCondition, negative: TextCondition) -> dict[str, Any]:
        """Arguments of the pipeline's call that stand for encoded prompts and for the negative (or empty) one."""
