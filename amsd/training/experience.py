"""What trajectories leave behind for the loss, and the loss's view of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amsd.diffusion.guidance import Conditioning
from amsd.diffusion.noise import Key
from amsd.strata import strata


@dataclass(frozen=True)
class Sample:
    """One trajectory to draw: its prompt, and the key of all its random numbers."""

    prompt: str
    key: Key


@dataclass(frozen=True)
class Diagnostics:
    """What is logged of trajectories; every tensor (B,) on the CPU."""

    rewards: Tensor
    terms: Mapping[str, Tensor]
    reward_gradient_norm: Tensor
    clamped_share: Tensor
    """Share of the decoded pixel values outside [0, 1], where the clamped image has no gradient."""
    adjoint_norm: Mapping[str, Tensor]
    """|a_k| at the `first` index that was needed, the `middle` one and the `last` (the terminal one)."""
    initial_cosine: Tensor
    """Cosine of the angle between the initial noise x_0 and the terminal latent x_N: what the sampler remembers."""

    @staticmethod
    def cat(parts: Sequence[Diagnostics]) -> Diagnostics:
        """Batches one after another."""
        return Diagnostics(
            rewards=torch.cat([part.rewards for part in parts]),
            terms={name: torch.cat([part.terms[name] for part in parts]) for name in parts[0].terms},
            reward_gradient_norm=torch.cat([part.reward_gradient_norm for part in parts]),
            clamped_share=torch.cat([part.clamped_share for part in parts]),
            adjoint_norm={
                name: torch.cat([part.adjoint_norm[name] for part in parts]) for name in parts[0].adjoint_norm
            },
            initial_cosine=torch.cat([part.initial_cosine for part in parts]),
        )


@dataclass(frozen=True)
class Experience:
    """M stored steps of each of B trajectories, batch first."""

    prompts: tuple[str, ...]
    indices: Tensor
    """Stored step indices k, ascending, LongTensor (B, M) on the CPU."""
    columns: Tensor
    """Which of the M each pass uses, LongTensor (B, passes, K) on the CPU."""
    states: Tensor
    """x_k, (B, M, ...)."""
    adjoints: Tensor
    """The adjoint that x_k's control is matched to (a_{k+1} or a_k, by the recipe), (B, M, ...)."""
    base_predictions: Tensor
    """eps_0(x_k), guided as the control is, (B, M, ...)."""
    noises: Tensor
    """z_k, (B, M, ...)."""
    sampler_predictions: Tensor
    """eps of the policy that sampled, guided as the sampler was, (B, M, ...)."""
    conditioning: Conditioning
    """Prompt and empty prompt, before dropout."""
    dropped: Tensor
    """Rows under prompt dropout, BoolTensor (B,)."""
    diagnostics: Diagnostics

    def __len__(self) -> int:
        return len(self.states)

    @property
    def bytes_per_trajectory(self) -> float:
        """Memory of the stored tensors per trajectory, in bytes."""
        tensors = (self.states, self.adjoints, self.base_predictions, self.noises, self.sampler_predictions)
        return sum(value.numel() * value.element_size() for value in tensors) / max(1, len(self))

    def map(self, latents: Callable[[Tensor], Tensor], conditions: Callable[[Tensor], Tensor]) -> Experience:
        """Apply `latents` to the five latent tensors and `conditions` to the encoded prompts."""
        return Experience(
            prompts=self.prompts,
            indices=self.indices,
            columns=self.columns,
            states=latents(self.states),
            adjoints=latents(self.adjoints),
            base_predictions=latents(self.base_predictions),
            noises=latents(self.noises),
            sampler_predictions=latents(self.sampler_predictions),
            conditioning=self.conditioning.map(conditions),
            dropped=self.dropped,
            diagnostics=self.diagnostics,
        )

    @staticmethod
    def cat(parts: Sequence[Experience]) -> Experience:
        """Batches one after another."""
        return Experience(
            prompts=tuple(prompt for part in parts for prompt in part.prompts),
            indices=torch.cat([part.indices for part in parts]),
            columns=torch.cat([part.columns for part in parts]),
            states=torch.cat([part.states for part in parts]),
            adjoints=torch.cat([part.adjoints for part in parts]),
            base_predictions=torch.cat([part.base_predictions for part in parts]),
            noises=torch.cat([part.noises for part in parts]),
            sampler_predictions=torch.cat([part.sampler_predictions for part in parts]),
            conditioning=Conditioning.cat([part.conditioning for part in parts]),
            dropped=torch.cat([part.dropped for part in parts]),
            diagnostics=Diagnostics.cat([part.diagnostics for part in parts]),
        )

    def items(self, rows: Tensor, pass_index: int) -> Items:
        """The loss items of one pass for the given trajectories: `rows` (R,) times K steps, row by row."""
        columns = self.columns[rows, pass_index]
        row = rows.repeat_interleave(columns.shape[1])
        return Items(self, row, columns.flatten())


@dataclass(frozen=True)
class Items:
    """Steps of trajectories, as the loss sees them: item i is stored step `column[i]` of trajectory `row[i]`."""

    experience: Experience
    row: Tensor
    """LongTensor (M,)."""
    column: Tensor
    """LongTensor (M,)."""

    def __len__(self) -> int:
        return len(self.row)

    @property
    def indices(self) -> Tensor:
        """Step indices k, LongTensor (M,) on the CPU."""
        return self.experience.indices[self.row, self.column]

    def latent(self, name: str, device: torch.device) -> Tensor:
        """Rows of one of the latent tensors of the experience, (M, ...), float32 on `device`."""
        source: Tensor = getattr(self.experience, name)
        rows, columns = self.row.to(source.device), self.column.to(source.device)
        picked = source[rows, columns]
        return picked.to(device, torch.promote_types(picked.dtype, torch.float32))

    def conditioning(self, device: torch.device) -> Conditioning:
        """Conditions of the items, before dropout."""
        source = self.experience.conditioning
        rows = self.row.to(source.prompt.hidden_states.device)
        return source.rows(rows).map(lambda value: value.to(device))

    @property
    def dropped(self) -> Tensor:
        """BoolTensor (M,)."""
        return self.experience.dropped[self.row]

    def prompts(self) -> list[str]:
        """Prompt of each item."""
        return [self.experience.prompts[row] for row in self.row.tolist()]

    def split(self, size: int) -> list[Items]:
        """Consecutive chunks of at most `size` items."""
        pairs = zip(self.row.split(size), self.column.split(size), strict=True)
        return [Items(self.experience, row, column) for row, column in pairs]


@dataclass(frozen=True)
class IndexPlan:
    """Which steps of one trajectory are stored, and which of them each pass uses."""

    stored: Tensor
    """Ascending positions among the controlled steps, LongTensor (M,)."""
    columns: Tensor
    """LongTensor (passes, K): positions in `stored`."""


def plan_indices(num_steps: int, count: int, passes: int, generator: torch.Generator) -> IndexPlan:
    """Stratified step indices for every pass, repeating a step only once its stratum is used up.

    Each pass is distributed as `stratified_indices`; M depends on the arguments alone, not on the draw.
    """
    stored, chosen = [], []
    for stratum, share in strata(num_steps, count):
        if not share:
            continue
        per_round = len(stratum) // share
        rounds = -(-passes // per_round)
        draws = torch.cat(
            [
                torch.randperm(len(stratum), generator=generator)[: per_round * share].view(per_round, share)
                for _ in range(rounds)
            ]
        )[:passes]
        chosen.append(draws + stratum.start)
        everything = torch.arange(stratum.start, stratum.stop)
        stored.append(chosen[-1].flatten().sort().values if rounds == 1 else everything)
    kept = torch.cat(stored)
    return IndexPlan(kept, torch.searchsorted(kept, torch.cat(chosen, 1).sort(1).values))
