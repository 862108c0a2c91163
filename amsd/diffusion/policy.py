"""What a policy is: fine-tuned and base network behind one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from amsd.diffusion.families.base import Family
from amsd.diffusion.guidance import TextCondition
from amsd.recipe import Model

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Policy(ABC):
    """Two noise predictors of one family: the fine-tuned one, and the base it started from.

    After construction both are the same function. Only `trainable` parameters ever change, and they are float32.
    """

    def __init__(self, family: Family, model: Model) -> None:
        self.family = family
        self.model = model
        self.dtype = _DTYPES[model.precision]
        self._checkpoints = False
        pipeline = family.pipeline
        for module in (pipeline.vae, family.denoiser, *family.text_encoders):
            module.requires_grad_(False).eval()
        pipeline.vae.to(torch.float32)
        for module in family.text_encoders:
            module.to(self.dtype)

    @property
    def pipeline(self) -> Any:
        """The diffusers pipeline; `sampling` and `sampling_base` say which network it holds."""
        return self.family.pipeline

    @property
    @abstractmethod
    def networks(self) -> list[nn.Module]:
        """Every denoising module, for moving and compiling."""

    @property
    @abstractmethod
    def trained_network(self) -> nn.Module:
        """The denoising module that is trained."""

    def checkpoint_gradients(self) -> None:
        """Let passes through the trained network keep few activations and compute the others again.

        The base is left alone: a product with its Jacobian needs no room for the gradients of its parameters.
        """
        self._checkpoints = True
        cast(Any, self.trained_network).enable_gradient_checkpointing()

    @property
    @abstractmethod
    def trainable(self) -> dict[str, nn.Parameter]:
        """Trained parameters by name, float32."""

    @abstractmethod
    def finetuned(self, x: Tensor, timesteps: Tensor, condition: TextCondition) -> Tensor:
        """Raw output (B, ...) of the fine-tuned network."""

    @abstractmethod
    def base(self, x: Tensor, timesteps: Tensor, condition: TextCondition) -> Tensor:
        """Raw output (B, ...) of the base network."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the fine-tuned weights in the form that plain diffusers loads."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Read what `save` wrote into the trained parameters."""

    @abstractmethod
    def _sampling_module(self, base: bool) -> nn.Module: ...

    @final
    @contextmanager
    def sampling(self, base: bool = False) -> Iterator[Any]:
        """The diffusers pipeline holding the fine-tuned (or the base) network, without gradients."""
        family = self.family
        before = family.denoiser
        with torch.no_grad(), self.autocast(), self.only_base() if base else nullcontext():
            family.denoiser = self._sampling_module(base)
            try:
                yield family.pipeline
            finally:
                family.denoiser = before

    @final
    def autocast(self) -> torch.autocast:
        """Mixed precision of the networks, off in fp32."""
        device = next(iter(self.trainable.values())).device.type
        return torch.autocast(device, dtype=self.dtype, enabled=self.dtype is not torch.float32)

    @final
    def to(self, device: torch.device) -> None:
        """Move everything."""
        self.pipeline.to(device)
        for network in self.networks:
            network.to(device)

    @contextmanager
    def only_base(self) -> Iterator[None]:
        """Inside the block only the base is used, backward passes through it included."""
        yield
