"""What a policy is: fine-tuned and base network behind one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from amsd.diffusion.families.base import Family
from amsd.diffusion.guidance import Network, TextCondition
from amsd.diffusion.held import HeldCopy, cast_inputs, compile_blocks
from amsd.diffusion.lockstep import LockStep
from amsd.diffusion.sharding import sum_and_let_go
from amsd.files import Writes
from amsd.recipe import Model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Policy(ABC):
    """Two noise predictors of one family: the fine-tuned one, and the base it started from.

    After construction both are the same function. Only `trainable` parameters ever change, and they are float32.
    """

    def __init__(self, family: Family, model: Model) -> None:
        self.family = family
        self.model = model
        self.dtype = DTYPES[model.precision]
        self._checkpoints = False
        self._compiles = False
        self._copy: HeldCopy | None = None
        self._held: HeldCopy | None = None
        self._sharded = False
        pipeline = family.pipeline
        for module in (pipeline.vae, family.denoiser, *family.text_encoders):
            module.requires_grad_(False).eval()
        pipeline.vae.to(torch.float32)
        for module in family.text_encoders:
            module.to(self.dtype)

    @property
    def pipeline(self) -> Any:
        """The diffusers pipeline; `sampling` says which network it holds."""
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
        self._copy = None
        cast(Any, self.trained_network).enable_gradient_checkpointing()

    @property
    @abstractmethod
    def trainable(self) -> dict[str, nn.Parameter]:
        """Trained parameters by name, float32."""

    @property
    def trained_parameters(self) -> int:
        """How many numbers are trained; of networks that processes divide, all of them."""
        return sum(parameter.numel() for parameter in self.trainable.values())

    def compile(self) -> None:
        """Compile the blocks that every network repeats: a tenth of the time that a whole network takes."""
        self._compiles = True
        for network in self.networks:
            compile_blocks(network)

    @final
    def finetuned(self, x: Tensor, timesteps: Tensor, condition: TextCondition) -> Tensor:
        """Raw output (B, ...) of the fine-tuned network."""
        copied = self._held
        if copied is None and self.dtype is not torch.float32:
            copied = self._current_copy()
        if copied is None or (torch.is_grad_enabled() and not copied.differentiable):
            return self._trained_output(x, timesteps, condition)
        return self._call_of(copied.network)(x, timesteps, condition)

    @final
    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside the block the trained weights do not change: what is computed with is cast or merged once, on entry.

        Outside it is cast at every pass. Blocks may be nested.
        """
        if self._held is not None:
            yield
            return
        self._held = self._current_copy()
        try:
            yield
        finally:
            self._held = None

    def _current_copy(self) -> HeldCopy | None:
        """The copy with the weights as they are now; None where the trained network computes itself."""
        if self._sharded:  # nobody has room for a whole copy, and FSDP casts by itself
            return None
        if self._copy is None:
            self._copy = self._new_copy()
            if self._copy is not None and self._compiles:
                compile_blocks(self._copy.network)
        if self._copy is not None:
            self._copy.refresh()
        return self._copy

    @abstractmethod
    def _trained_output(self, x: Tensor, timesteps: Tensor, condition: TextCondition) -> Tensor:
        """Raw output (B, ...) of the fine-tuned network, differentiable in its parameters."""

    @abstractmethod
    def _call_of(self, copied: nn.Module) -> Network:
        """The fine-tuned network as a function, with a copy in the place of the trained one."""

    @abstractmethod
    def _new_copy(self) -> HeldCopy | None:
        """A copy of the trained network that computes in its place; None where it would gain nothing."""

    @abstractmethod
    def base(self, x: Tensor, timesteps: Tensor, condition: TextCondition) -> Tensor:
        """Raw output (B, ...) of the base network."""

    @abstractmethod
    def as_it_is(self) -> Writes:
        """What writes the fine-tuned weights, as they are now, in the form that plain diffusers loads.

        Every process of a sharded policy calls it; what it returns writes on the main process.
        """

    @final
    def save(self, folder: Path) -> None:
        """Write the fine-tuned weights now."""
        self.as_it_is()(folder)

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Read what `save` wrote into the trained parameters."""

    @abstractmethod
    def _sampling_module(self, trained: nn.Module) -> nn.Module:
        """The fine-tuned network as a module, with `trained` (or a copy of it) in its place."""

    @property
    @abstractmethod
    def _base_module(self) -> nn.Module:
        """The base network as a module (inside `only_base`)."""

    @final
    @contextmanager
    def sampling(self, base: bool = False) -> Iterator[Any]:
        """The diffusers pipeline holding the fine-tuned (or the base) network, without gradients."""
        family = self.family
        before = family.denoiser
        with torch.no_grad(), self.only_base() if base else self.held():
            trained = self.trained_network if self._held is None else self._held.network
            family.denoiser = self._base_module if base else self._sampling_module(trained)
            try:
                yield family.pipeline
            finally:
                family.denoiser = before

    @final
    def to(self, device: torch.device) -> None:
        """Move everything."""
        self._copy = None
        self.pipeline.to(device)
        for network in self.networks:
            network.to(device)

    @property
    def sharded(self) -> bool:
        """Whether the networks are divided among the processes of the run."""
        return self._sharded

    @final
    def shard(self, divide: Callable[[nn.Module], None]) -> LockStep:
        """Divide every denoising network among the processes; returns what keeps their passes in step.

        `divide` shards one network in place.
        """
        for network in self.networks:
            divide(network)
            sum_and_let_go(network)
            cast_inputs(network, self.dtype)
        self._sharded = True
        frozen = [network for network in self.networks if network is not self.trained_network]
        return LockStep(frozen, [self.trained_network])

    @contextmanager
    def only_base(self) -> Iterator[None]:
        """Inside the block only the base is used, backward passes through it included."""
        yield
