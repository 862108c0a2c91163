"""Where a trainer's experience comes from: collected afresh for every step, or from a buffer."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from amsd.diffusion.guidance import Conditioning
from amsd.errors import RunError
from amsd.prompts import BufferPromptDataModule, PromptDataModule
from amsd.recipe import Recipe
from amsd.training import processes
from amsd.training.experience import Experience, Sample
from amsd.training.state import load_experience, save_experience

Collect = Callable[[Sequence[Sample], int, int], Experience]
"""(this process's samples, passes, step) -> experience."""


@dataclass(frozen=True)
class Batch:
    """This process's part of one optimizer step."""

    experience: Experience
    rows: Tensor
    """Trajectories of the experience that are used, LongTensor (R,)."""
    pass_index: int
    collected: int
    """Trajectories that were collected for this step, over all processes."""


class ExperienceSource(ABC):
    """Supplies every optimizer step with experience, and can be saved and restored between steps."""

    reuses: ClassVar[bool]
    """Whether trajectories are used after the policy has changed."""

    def __init__(self, recipe: Recipe, prompts: Sequence[str], collect: Collect) -> None:
        """`prompts` are those to train on."""
        self.recipe = recipe
        self._prompts = prompts
        self._collect = collect

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """Experience for optimizer step `step`, counted from 1."""

    @abstractmethod
    def feedback(self, ess: float) -> None:
        """Told after each step: the normalised effective sample size of its batch."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write this process's part of the state."""

    @abstractmethod
    def restore(self, folder: Path, encode: Callable[[Sequence[str]], Conditioning]) -> None:
        """Read the state that any number of processes wrote."""

    def _samples(self, name: str, number: int, prompts: Sequence[str]) -> list[Sample]:
        """A global batch of trajectories, known by `name` and `number`: the same on every process."""
        seed = self.recipe.training.seed
        return [Sample(p, (seed, name, number, i)) for i, p in enumerate(prompts)]


class OnPolicy(ExperienceSource):
    """New trajectories under the current policy for every optimizer step."""

    reuses = False

    def __init__(self, recipe: Recipe, prompts: Sequence[str], collect: Collect) -> None:
        super().__init__(recipe, prompts, collect)
        self._order = PromptDataModule(prompts, recipe.training.seed)

    def batch(self, step: int) -> Batch:
        """Collect one batch."""
        size = self.recipe.optimizer.prompts_per_step
        samples = self._samples("step", step, self._order.batch(step - 1, size))
        experience = self._collect(processes.shard(samples), 1, step)
        return Batch(experience, torch.arange(len(experience)), 0, size)

    def feedback(self, ess: float) -> None:
        """Nothing is reused."""

    def save(self, folder: Path) -> None:
        """Nothing outlasts a step."""

    def restore(self, folder: Path, encode: Callable[[Sequence[str]], Conditioning]) -> None:
        """Nothing outlasts a step."""


class Buffered(ExperienceSource):
    """`size` trajectories are collected, used in `passes` shuffled passes, and collected again.

    Trajectory i sits in slot i mod P (P = prompts per step), and every optimizer step takes one trajectory out of
    each slot. Slot s belongs to process s mod W, so a step has the same trajectories at any number of processes
    W <= P, every process has its even share of it, and no trajectory ever travels.
    """

    reuses = True

    def __init__(self, recipe: Recipe, prompts: Sequence[str], collect: Collect) -> None:
        super().__init__(recipe, prompts, collect)
        size, per_step = recipe.buffer_size, recipe.optimizer.prompts_per_step
        self._order = BufferPromptDataModule(prompts, recipe.training.seed, size, per_step)
        self._experience: Experience | None = None
        self._collections = 0
        self._used = 0
        """Optimizer steps taken from the current collection."""
        self._stale = False

    def batch(self, step: int) -> Batch:
        """The next batch of the current pass, from a new collection where one is due."""
        buffer = self.recipe.method.buffer
        collected = 0
        if self._experience is None or self._stale or self._used == buffer.passes * self._order.steps_per_pass:
            samples = self._samples("collection", self._collections, self._order.collection(self._collections))
            own = [samples[number] for number in self._numbers(processes.rank(), processes.world_size())]
            self._experience = None  # let go of the old one first
            self._experience = self._stored(self._collect(own, buffer.passes, step))
            self._collections += 1
            self._used, self._stale = 0, False
            collected = self.recipe.buffer_size
        pass_index, position = divmod(self._used, self._order.steps_per_pass)
        self._used += 1
        return Batch(self._experience, self._rows(pass_index, position), pass_index, collected)

    def feedback(self, ess: float) -> None:
        """Collect again before the next step once the policy has moved too far from the buffer's."""
        self._stale = ess < self.recipe.method.buffer.min_ess

    def save(self, folder: Path) -> None:
        """Write the buffer of this process, and (main process) the position in it."""
        if processes.rank() == 0:
            position = {
                "collections": self._collections,
                "used": self._used,
                "stale": self._stale,
                "processes": processes.world_size(),
            }
            (folder / "buffer.json").write_text(json.dumps(position), encoding="utf-8")
        if self._experience is not None:
            save_experience(self._experience, folder / f"buffer-{processes.rank():05d}.safetensors")

    def restore(self, folder: Path, encode: Callable[[Sequence[str]], Conditioning]) -> None:
        """Read the buffer, also one that another number of processes wrote."""
        position = json.loads((folder / "buffer.json").read_text(encoding="utf-8"))
        self._collections, self._used = position["collections"], position["used"]
        self._stale = position["stale"]
        files = [folder / f"buffer-{index:05d}.safetensors" for index in range(position["processes"])]
        if not files[0].is_file():
            return
        parts = [load_experience(file, encode) for file in files]
        merged = Experience.cat(parts)
        written = torch.tensor([number for index in range(len(files)) for number in self._numbers(index, len(files))])
        own = torch.tensor(self._numbers(processes.rank(), processes.world_size()))
        self._experience = self._stored(_take(merged, torch.argsort(written)[own]))

    def _numbers(self, rank: int, world: int) -> list[int]:
        """Trajectories of a collection that process `rank` of `world` holds, in the order of its rows."""
        slots = self._order.prompts_per_step
        return [number for number in range(self.recipe.buffer_size) if number % slots % world == rank]

    def _rows(self, pass_index: int, position: int) -> Tensor:
        """Rows of this process's experience that form step `position` of a pass: its share, as `shard` deals it."""
        row = {number: row for row, number in enumerate(self._numbers(processes.rank(), processes.world_size()))}
        chosen = processes.shard(self._order.step(self._collections - 1, pass_index, position))
        return torch.tensor([row[number] for number in chosen], dtype=torch.long)

    def _stored(self, experience: Experience) -> Experience:
        buffer = self.recipe.method.buffer
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[buffer.dtype]
        pin = buffer.device == "cpu" and torch.cuda.is_available()

        def place(value: Tensor) -> Tensor:
            if buffer.device == "accelerator":
                return value
            on_host = value.cpu()
            return on_host.pin_memory() if pin else on_host

        stored = experience.map(lambda value: place(value.to(dtype)), place)
        _require_representable(stored, buffer.dtype)
        return stored


def _require_representable(experience: Experience, dtype: str) -> None:
    """Check what was rounded for the buffer: adjoints beyond 65504 are infinite in fp16.

    Raises:
        RunError: a stored tensor is not finite.
    """
    if dtype != "fp16":  # the others have the range of float32, where everything was checked
        return
    for name in ("states", "adjoints", "base_predictions", "noises", "sampler_predictions"):
        if not bool(getattr(experience, name).isfinite().all()):
            raise RunError(f"The {name} do not fit into method.buffer.dtype = {dtype!r}; use bf16 or fp32.")


def _take(experience: Experience, rows: Tensor) -> Experience:
    diagnostics = experience.diagnostics
    chosen = experience.map(lambda value: value[rows], lambda value: value[rows])
    return Experience(
        prompts=tuple(experience.prompts[row] for row in rows.tolist()),
        indices=experience.indices[rows],
        columns=experience.columns[rows],
        states=chosen.states,
        adjoints=chosen.adjoints,
        base_predictions=chosen.base_predictions,
        noises=chosen.noises,
        sampler_predictions=chosen.sampler_predictions,
        conditioning=chosen.conditioning,
        dropped=experience.dropped[rows],
        diagnostics=type(diagnostics)(
            rewards=diagnostics.rewards[rows],
            terms={name: value[rows] for name, value in diagnostics.terms.items()},
            reward_gradient_norm=diagnostics.reward_gradient_norm[rows],
            clamped_share=diagnostics.clamped_share[rows],
            adjoint_norm={name: value[rows] for name, value in diagnostics.adjoint_norm.items()},
            initial_cosine=diagnostics.initial_cosine[rows],
        ),
    )
