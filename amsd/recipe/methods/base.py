"""What a method says about itself without torch: its keys, its rules, its cost, its words."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, PrivateAttr
from typing_extensions import override

from amsd.recipe.errors import Problem
from amsd.recipe.section import Fraction, Positive, Section
from amsd.recipe.tables import Tables


@dataclass(frozen=True)
class Cost:
    """Network forward-equivalents (F) per trajectory of one optimizer step; one F is one forward pass for one image.

    A product with the Jacobian costs two F, a loss step three (forward, and backward twice as much). Gradient
    checkpointing, which computes forward passes again, is not counted.
    """

    parts: Mapping[str, float]
    """What for -> F, such as `sampling` and `loss`."""

    collecting: frozenset[str] = frozenset({"sampling", "adjoint", "base"})
    """The parts that a trajectory costs when it is collected; the others come with each use of it."""

    @property
    def total(self) -> float:
        """Everything."""
        return self.in_collections + self.in_steps

    @property
    def in_collections(self) -> float:
        """What is spent when trajectories are collected, shared among the passes over them."""
        return sum(value for part, value in self.parts.items() if part in self.collecting)

    @property
    def in_steps(self) -> float:
        """What is spent in every optimizer step."""
        return sum(value for part, value in self.parts.items() if part not in self.collecting)

    def __getitem__(self, part: str) -> float:
        return self.parts[part]


class MethodSection(Section):
    """The `[method]` table. A child class is a method's own; its name stands in the table of methods."""

    label: ClassVar[str]
    """What reports call the method."""
    trainer: ClassVar[str]
    """Its trainer class, `module:name`."""
    needs_reward_gradient: ClassVar[bool] = True
    """Whether it differentiates the reward."""
    scores_groups: ClassVar[bool] = False
    """Whether it scores whole groups of samples of one prompt, so that a reward may compare them (`groupwise`)."""
    as_before: ClassVar[Mapping[str, Any]] = {}
    """Keys that came later, at the values that mean what recipes without them meant."""

    name: str
    _ignored: tuple[str, ...] = PrivateAttr(default=())

    @property
    def ignored(self) -> tuple[str, ...]:
        """Keys of other methods that the recipe sets: they have no effect."""
        return self._ignored

    @property
    def items_per_trajectory(self) -> int:
        """Loss items of one trajectory: rows of the network that the loss keeps activations for."""
        return 1

    def adjoint_rows(self, recipe: Tables) -> int:
        """Rows of the base that collecting keeps activations of, for each trajectory; 0 without an adjoint."""
        return 0

    @property
    def samples_per_prompt(self) -> int:
        """Consecutive trajectories of a collection that share their prompt."""
        return 1

    @property
    def tilt(self) -> float | None:
        """Lambda, where the method aims at the base distribution tilted by exp(lambda * reward)."""
        return None

    @property
    def short(self) -> str:
        """What tells two runs of the method apart, as part of a folder's name."""
        return self.name if self.tilt is None else f"lambda{self.tilt:g}"

    def fitted(self, recipe: Tables) -> Self:
        """The same with sizes that were left open, chosen to fit the recipe."""
        return self

    def problems(self, recipe: Tables) -> Iterator[Problem]:
        """What cannot work in this recipe."""
        yield from ()

    def advice(self, recipe: Tables) -> Iterator[Problem]:
        """What works but is probably not meant."""
        yield from ()

    def canonical(self) -> dict[str, Any]:
        """What determines the trained weights, as plain data."""
        tree = self.model_dump(mode="json")
        return {key: value for key, value in tree.items() if key not in self.as_before or value != self.as_before[key]}

    @property
    def passes(self) -> int:
        """How often a trajectory is used."""
        return 1

    @abstractmethod
    def cost(self, recipe: Tables, processes: int) -> Cost:
        """Expected cost of one trajectory in one optimizer step."""


class TiltedSection(MethodSection):
    """A method that aims at the base distribution tilted by the reward."""

    reward_multiplier: Positive = 100.0
    """Lambda: the target is the base distribution tilted by exp(lambda * reward)."""

    @property
    @override
    def tilt(self) -> float:
        return self.reward_multiplier


class StratifiedSection(MethodSection):
    """A method that takes its loss at several steps of each trajectory."""

    timesteps_per_trajectory: int = Field(default=4, ge=1)
    """Loss steps K per trajectory, stratified over the schedule."""

    @property
    @override
    def items_per_trajectory(self) -> int:
        return self.timesteps_per_trajectory

    def advice(self, recipe: Tables) -> Iterator[Problem]:
        """A single step, of which the early half gets none: runs of earlier releases must go on as they began."""
        yield from super().advice(recipe)
        if self.timesteps_per_trajectory == 1 < recipe.schedule.num_inference_steps:
            yield Problem(
                "method.timesteps_per_trajectory",
                "a single loss step is always among the last 40% of the steps, so those of high noise are not trained",
                1, "Use 2 or more.",
            )  # fmt: skip


class Buffer(Section):
    """Experience buffer (docs/method.md section 5)."""

    size: int | None = Field(default=None, ge=1, le=10_000_000)
    """Trajectories per collection, over all processes; a multiple of `optimizer.prompts_per_step`; unset: as many."""
    passes: int = Field(default=10, ge=1)
    """Passes of loss steps over one buffer."""
    device: Literal["cpu", "accelerator"] = "cpu"
    """Where states are stored: pinned host memory or the training device."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the stored tensors."""
    min_ess: Fraction = 0.0
    """Collect again once the normalized effective sample size falls below this; 0 is never."""
    importance_weighting: bool = False
    """Whether self-normalized importance weights enter the loss."""

    def trajectories(self, prompts_per_step: int) -> int:
        """Trajectories per collection."""
        return prompts_per_step if self.size is None else self.size

    def fitted(self, recipe: Tables) -> Buffer:
        """The same with its size."""
        return self.model_copy(update={"size": self.trajectories(recipe.optimizer.prompts_per_step)})

    def problems(self, recipe: Tables) -> Iterator[Problem]:
        """A pass that is not a whole number of optimizer steps."""
        batch = recipe.optimizer.prompts_per_step
        size = self.trajectories(batch)
        below, rest = divmod(size, batch)
        if rest:
            multiples = " or ".join(str(count * batch) for count in (below, below + 1) if count)
            yield Problem("method.buffer.size", f"must be a multiple of optimizer.prompts_per_step = {batch}", size,
                          f"Nearest: {multiples}.")  # fmt: skip


class BufferedSection(MethodSection):
    """A method whose experience comes from a buffer."""

    buffer: Buffer = Buffer()

    def fitted(self, recipe: Tables) -> Self:
        """The same with the buffer's size."""
        return super().fitted(recipe).model_copy(update={"buffer": self.buffer.fitted(recipe)})

    def problems(self, recipe: Tables) -> Iterator[Problem]:
        """Those of the method and of its buffer."""
        yield from super().problems(recipe)
        yield from self.buffer.problems(recipe)


class GroupedSection(MethodSection):
    """A method that compares samples of one prompt with each other."""

    group_size: int | None = Field(default=None, ge=2)
    """Samples of one prompt that are compared; divides `optimizer.prompts_per_step`. Unset: the divisor nearest 8."""

    @property
    def samples_per_prompt(self) -> int:
        """The group."""
        return self.group_size or 1

    def fitted(self, recipe: Tables) -> Self:
        """With the group's size."""
        found = super().fitted(recipe)
        if self.group_size is not None:
            return found
        total = recipe.optimizer.prompts_per_step
        divisors = [number for number in range(2, total + 1) if total % number == 0]
        nearest = min(divisors, key=lambda number: abs(number - 8), default=None)
        return found.model_copy(update={"group_size": nearest})

    def problems(self, recipe: Tables) -> Iterator[Problem]:
        """A batch that is not a whole number of groups."""
        yield from super().problems(recipe)
        total = recipe.optimizer.prompts_per_step
        if total < 2:
            yield Problem("optimizer.prompts_per_step", "each prompt needs two samples or more, to compare them", total,
                          "Use 2 or more.")  # fmt: skip
        elif self.group_size is not None and total % self.group_size:
            yield Problem("method.group_size", f"must divide optimizer.prompts_per_step = {total}", self.group_size)


def unguided_roles(recipe: Tables, reason: str) -> Iterator[Problem]:
    """Guidance in the adjoint or in the control, for a method that has neither."""
    for key in ("guidance_in_adjoint_computation", "guidance_in_control_computation"):
        if getattr(recipe.guidance, key):
            yield Problem(f"guidance.{key}", reason, True, "Remove it.")


def without_dropout(method: MethodSection, recipe: Tables) -> Iterator[Problem]:
    """Prompt dropout, for a method whose loss belongs to the sampler's own prompts."""
    if recipe.prompts.dropout:
        yield Problem("prompts.dropout", f"has no effect with method.name = {method.name!r}, which "
                      "differentiates the samples as they were drawn", recipe.prompts.dropout)  # fmt: skip


def sampled_rows(recipe: Tables) -> int:
    """Rows of the network for one sample of the sampler: two with guidance."""
    return 2 if recipe.guidance.guidance_scale != 1 else 1


def controlled_steps(recipe: Tables) -> int:
    """Steps with noise: all but a noiseless last one, none without noise."""
    if recipe.schedule.eta == 0:
        return 0
    return recipe.schedule.num_inference_steps - (recipe.schedule.final_step == "noiseless")


def chunks_per_step(recipe: Tables, processes: int) -> int:
    """Micro-batches that the largest share of an optimizer step's trajectories is divided into."""
    local = -(-recipe.optimizer.prompts_per_step // processes)
    size = recipe.optimizer.micro_batch
    return 1 if size == "auto" else -(-local // size)
