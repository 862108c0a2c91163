"""What trajectories leave behind for the loss: any frozen dataclass of batches that knows its prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from amsd.diffusion.guidance import Conditioning
from amsd.diffusion.noise import Key
from amsd.rows import Rows, select

#: Metadata of a field that a buffer may store in another precision: `field(metadata=LATENT)`.
LATENT: Mapping[str, Any] = {"latent": True}
#: Metadata of a field that buffers of earlier versions lack, and that is only logged: it is NaN where it is absent.
LOGGED_LATER: Mapping[str, Any] = {"logged_later": True}


Bring = Callable[..., Tensor]
"""(tensor, *index) -> tensor[index], wherever it is wanted."""


@dataclass(frozen=True)
class Sample:
    """One trajectory to draw: its prompt, and the key of all its random numbers."""

    prompt: str
    key: Key


@dataclass(frozen=True)
class ItemLosses:
    """Losses of a chunk, or of the global batch: M items, trajectory by trajectory."""

    loss: Tensor
    """(M,), differentiable in the trained parameters where it is a chunk's; may be negative."""
    logged: Mapping[str, Tensor] = field(default_factory=dict)
    """Further values of the items by name, (M,), detached."""


@dataclass(frozen=True)
class Experience(Rows):
    """B trajectories. A method derives its own class and adds fields; each is a batch (`amsd.rows`)."""

    prompts: tuple[str, ...]
    conditioning: Conditioning
    """Prompt and empty prompt, encoded, before dropout. Not saved: encoded again from the prompts."""

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def bytes_per_trajectory(self) -> float:
        """Memory of the latents per trajectory, in bytes."""
        return sum(value.numel() * value.element_size() for _, value in self.latents()) / max(1, len(self))

    def latents(self) -> list[tuple[str, Tensor]]:
        """The fields that a buffer may store in another precision, by name."""
        return [(name, value) for name, value in self.tensors() if name in _latents(type(self))]

    def stored(self, dtype: torch.dtype, place: Callable[[Tensor], Tensor]) -> Self:
        """The same as a buffer keeps it: latents in `dtype`, latents and conditions where `place` puts them."""
        changed: dict[str, Any] = {"conditioning": self.conditioning.map(place)}
        changed |= {name: place(value.to(dtype)) for name, value in self.latents()}
        return type(self)(**{each.name: changed.get(each.name, getattr(self, each.name)) for each in fields(self)})

    def used(self, rows: Tensor, pass_index: int, bring: Bring) -> Self:
        """The rows (R,) as one pass uses them; latents and conditions as `bring` takes them out of their tensors."""
        return self._taken(rows, bring, (rows,))

    def _taken(self, rows: Tensor, bring: Bring, of_latents: tuple[Tensor, ...]) -> Self:
        changed: dict[str, Any] = {"conditioning": self.conditioning.map(lambda value: bring(value, rows))}
        changed |= {name: bring(value, *of_latents) for name, value in self.latents()}
        rest = [each.name for each in fields(self) if each.name not in changed]
        return type(self)(**changed, **{name: select(getattr(self, name), rows) for name in rest})

    def save(self, file: Path) -> None:
        """Write everything but the conditions."""
        from safetensors.torch import save_file

        tensors = {name: value for name, value in self.tensors() if not name.startswith("conditioning/")}
        cpu = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(cpu, file, metadata={"prompts": json.dumps(self.prompts)})

    @classmethod
    def load(cls, file: Path, encode: Callable[[Sequence[str]], Conditioning]) -> Self:
        """Read what `save` wrote; `encode` maps prompts to their conditions."""
        from safetensors import safe_open
        from safetensors.torch import load_file

        with safe_open(file, framework="pt") as stream:
            prompts = tuple(json.loads(stream.metadata()["prompts"]))
        tensors = load_file(file)
        values: dict[str, Any] = {"prompts": prompts, "conditioning": encode(prompts)}
        for each in fields(cls):
            if each.name not in values:
                absent = torch.full((len(prompts),), torch.nan) if "logged_later" in each.metadata else None
                values[each.name] = tensors.get(each.name, _inside(tensors, each.name) or absent)
        return cls(**values)


E = TypeVar("E", bound=Experience)


@dataclass(frozen=True)
class Rewarded(Experience):
    """Trajectories whose rewards are known when they are collected."""

    rewards: Tensor
    """(B,), on the CPU."""
    terms: Mapping[str, Tensor]
    """Each term before weighting, (B,), on the CPU."""


@dataclass(frozen=True)
class StoredSteps(Rewarded):
    """M stored steps of each of B trajectories, of which every pass uses K; all latents are (B, M, ...)."""

    indices: Tensor
    """Stored step indices k, ascending, LongTensor (B, M) on the CPU."""
    columns: Tensor
    """Which of the M each pass uses, LongTensor (B, planned passes, K) on the CPU; then they come again."""

    def columns_of(self, rows: Tensor, pass_index: int) -> Tensor:
        """Which of the M stored steps a pass uses of some trajectories, (R, K)."""
        return self.columns[rows, pass_index % self.columns.shape[1]]

    def used(self, rows: Tensor, pass_index: int, bring: Bring) -> Self:
        """The K steps of that pass only."""
        columns = self.columns_of(rows, pass_index)
        taken = self._taken(rows, bring, (rows[:, None], columns))
        in_order = torch.arange(columns.shape[1]).expand(len(rows), 1, -1)
        return replace(taken, indices=self.indices[rows[:, None], columns], columns=in_order)


def _latents(cls: type[Experience]) -> list[str]:
    return [each.name for each in fields(cls) if "latent" in each.metadata]


def _inside(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Entries of a mapping that was saved as `name/entry`."""
    return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
