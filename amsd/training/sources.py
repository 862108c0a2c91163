"""Where a trainer's experience comes from: collected afresh for every step, or from a buffer."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor

from amsd.diffusion.guidance import Conditioning
from amsd.diffusion.policy import DTYPES
from amsd.errors import RunError
from amsd.files import Writes, write_nothing
from amsd.prompts import BufferPromptDataModule, PromptDataModule
from amsd.recipe import BufferedSection, Recipe
from amsd.training import processes
from amsd.training.experience import E, Experience, Sample

Collect = Callable[[Sequence[Sample], int, int], E]
"""(this process's samples, passes, step) -> experience."""


@dataclass(frozen=True)
class Batch(Generic[E]):
    """This process's part of one optimizer step."""

    experience: E
    rows: Tensor
    """Trajectories of the experience that are used, LongTensor (R,)."""
    pass_index: int
    collected: int
    """Trajectories that were collected for this step, over all processes."""


class ExperienceSource(ABC, Generic[E]):
    """Supplies every optimizer step with experience, and can be saved and restored between steps."""

    def __init__(self, recipe: Recipe, prompts: Sequence[str], collect: Collect[E], kind: type[E]) -> None:
        """`prompts` are those to train on; `kind` is the class of the experience that `collect` returns."""
        self.recipe = recipe
        self._prompts = prompts
        self._collect = collect
        self._kind = kind

    @abstractmethod
    def batch(self, step: int) -> Batch[E]:
        """Experience for optimizer step `step`, counted from 1."""

    @abstractmethod
    def feedback(self, ess: float) -> None:
        """Told by a method that measures it: the normalized effective sample size of the step's batch."""

    @abstractmethod
    def values(self, batch: Batch[E]) -> dict[str, float]:
        """What is logged of a step's experience."""

    @abstractmethod
    def mark(self) -> Any:
        """Where it stands before a step, for `roll_back`."""

    @abstractmethod
    def roll_back(self, mark: Any) -> None:
        """Undo what a step that is dropped has begun."""

    @abstractmethod
    def as_it_is(self) -> Writes:
        """What writes this process's part of the state as it is now."""

    @abstractmethod
    def restore(self, folder: Path, encode: Callable[[Sequence[str]], Conditioning]) -> None:
        """Read the state that any number of processes wrote."""

    def _samples(self, name: str, number: int, prompts: Sequence[str]) -> list[Sample]:
        """A global batch of trajectories, known by `name` and `number`: the same on every process."""
        seed, each = self.recipe.training.seed, self.recipe.method.samples_per_prompt
        if each > 1:  # groups of consecutive trajectories
            prompts = [prompt for prompt in prompts[: len(prompts) // each] for _ in range(each)]
        return [Sample(p, (seed, name, number, i)) for i, p in enumerate(prompts)]


class OnPolicy(ExperienceSource[E]):
    """New trajectories under the current policy for every optimizer step."""

    def __init__(self, recipe: Recipe, prompts: Sequence[str], collect: Collect[E], kind: type[E]) -> None:
        super().__init__(recipe, prompts, collect, kind)
        self._order = PromptDataModule(prompts, recipe.training.seed)

    def batch(self, step: int) -> Batch[E]:
        """Collect one batch."""
        size = self.recipe.optimizer.prompts_per_step
        samples = self._samples("step", step, self._order.batch(step - 1, size))
        experience = self._collect(processes.shard(samples), 1, step)
        return Batch(experience, torch.arange(len(experience)), 0, size)

    def feedback(self, ess: float) -> None:
        """Nothing is reused."""

    def values(self, batch: Batch[E]) -> dict[str, float]:
        """Nothing to tell."""
        return {}

    def mark(self) -> None:
        """Nothing outlasts a step."""

    def roll_back(self, mark: None) -> None:
        """Nothing outlasts a step."""

    def as_it_is(self) -> Writes:
        """Nothing outlasts a step."""
        return write_nothing

    def restore(self, folder: Path, encode: Callable[[Sequence[str]], Conditioning]) -> None:
        """Nothing outlasts a step."""


class Buffered(ExperienceSource[E]):
    """`size` trajectories are collected, used in `passes` shuffled passes, and collected again.

    Trajectory i sits in slot i mod P (P = prompts per step), and every optimizer step takes one trajectory out of
    each slot. Slot s belongs to process s mod W, so a step has the same trajectories at any number of processes
    W <= P, every process has its even share of it, and no trajectory ever travels.
    """

    def __init__(self, recipe: Recipe, prompts: Sequence[str], collect: Collect[E], kind: type[E]) -> None:
        super().__init__(recipe, prompts, collect, kind)
        assert isinstance(recipe.method, BufferedSection)
        self._buffer = recipe.method.buffer
        per_step = recipe.optimizer.prompts_per_step
        self._size = size = self._buffer.trajectories(per_step)
        self._order = BufferPromptDataModule(prompts, recipe.training.seed, size, per_step)
        self._experience: E | None = None
        self._collections = 0
        self._used = 0
        """Optimizer steps taken from the current collection."""
        self._stale = False

    def batch(self, step: int) -> Batch[E]:
        """The next batch of the current pass, from a new collection where one is due."""
        buffer = self._buffer
        collected = 0
        if self._experience is None or self._stale or self._used == buffer.passes * self._order.steps_per_pass:
            samples = self._samples("collection", self._collections, self._order.collection(self._collections))
            own = [samples[number] for number in self._numbers(processes.rank(), processes.world_size())]
            self._experience = None  # let go of the old one first
            self._experience = self._stored(self._collect(own, buffer.passes, step))
            self._collections += 1
            self._used, self._stale = 0, False
            collected = self._size
        pass_index, position = divmod(self._used, self._order.steps_per_pass)
        self._used += 1
        return Batch(self._experience, self._rows(pass_index, position), pass_index, collected)

    def feedback(self, ess: float) -> None:
        """Collect again before the next step once the policy has moved too far from the buffer's."""
        self._stale = ess < self._buffer.min_ess

    def values(self, batch: Batch[E]) -> dict[str, float]:
        """Where in the buffer the step stands, and what a trajectory takes."""
        return {
            "buffer/collected": float(batch.collected),
            "buffer/pass": float(batch.pass_index),
            "buffer/bytes_per_trajectory": batch.experience.bytes_per_trajectory,
        }

    def mark(self) -> tuple[int, int, bool]:
        """Number of collections, steps taken from the last one, whether the next step collects again."""
        return self._collections, self._used, self._stale

    def roll_back(self, mark: tuple[int, int, bool]) -> None:
        """A collection that the dropped step has begun is made again, alike."""
        if mark[0] != self._collections:
            self._experience = None
        self._collections, self._used, self._stale = mark

    def as_it_is(self) -> Writes:
        """The buffer of this process, and (main process) the position in it.

        A buffer is never changed, only replaced, so the one in main memory needs no copy.
        """
        rank, stored = processes.rank(), self._experience
        position = {
            "collections": self._collections,
            "used": self._used,
            "stale": self._stale,
            "processes": processes.world_size(),
        }
        if stored is not None:
            stored = stored.map(lambda value: value.detach().cpu())

        def write(folder: Path) -> None:
            if rank == 0:
                (folder / "buffer.json").write_text(json.dumps(position), encoding="utf-8")
            if stored is not None:
                stored.save(folder / f"buffer-{rank:05d}.safetensors")

        return write

    def restore(self, folder: Path, encode: Callable[[Sequence[str]], Conditioning]) -> None:
        """Read the buffer, also one that another number of processes wrote."""
        position = json.loads((folder / "buffer.json").read_text(encoding="utf-8"))
        self._collections, self._used = position["collections"], position["used"]
        self._stale = position["stale"]
        files = [folder / f"buffer-{index:05d}.safetensors" for index in range(position["processes"])]
        if not files[0].is_file():
            return
        merged = self._kind.cat([self._kind.load(file, encode) for file in files])
        written = torch.tensor([number for index in range(len(files)) for number in self._numbers(index, len(files))])
        own = torch.tensor(self._numbers(processes.rank(), processes.world_size()))
        self._experience = self._stored(merged.rows(torch.argsort(written)[own]))

    def _numbers(self, rank: int, world: int) -> list[int]:
        """Trajectories of a collection that process `rank` of `world` holds, in the order of its rows."""
        slots = self._order.prompts_per_step
        return [number for number in range(self._size) if number % slots % world == rank]

    def _rows(self, pass_index: int, position: int) -> Tensor:
        """Rows of this process's experience that form step `position` of a pass: its share, as `shard` deals it."""
        row = {number: row for row, number in enumerate(self._numbers(processes.rank(), processes.world_size()))}
        chosen = processes.shard(self._order.step(self._collections - 1, pass_index, position))
        return torch.tensor([row[number] for number in chosen], dtype=torch.long)

    def _stored(self, experience: E) -> E:
        buffer = self._buffer
        pin = buffer.device == "cpu" and torch.cuda.is_available()

        def place(value: Tensor) -> Tensor:
            if buffer.device == "accelerator":
                return value
            on_host = value.cpu()
            return on_host.pin_memory() if pin else on_host

        stored = experience.stored(DTYPES[buffer.dtype], place)
        _require_representable(stored, buffer.dtype)
        return stored


def _require_representable(experience: Experience, dtype: str) -> None:
    """Check what was rounded for the buffer: adjoints beyond 65504 are infinite in fp16.

    Raises:
        RunError: a stored tensor is not finite.
    """
    if dtype != "fp16":  # the others have the range of float32, where everything was checked
        return
    for name, value in experience.latents():
        if not bool(value.isfinite().all()):
            raise RunError(f"The {name} do not fit into method.buffer.dtype = {dtype!r}; use bf16 or fp32.")
