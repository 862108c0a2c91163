"""Experience of Adjoint Matching: rollout, reward gradient, lean adjoint (docs/method.md sections 1 to 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from amsd.diffusion.guidance import Conditioning
from amsd.diffusion.noise import generator
from amsd.diffusion.rollout import Trajectory
from amsd.matching import LeanAdjoint, lean_adjoint, plan_indices
from amsd.recipe import AdjointMatching
from amsd.rows import on_device
from amsd.training.clock import PhaseClock
from amsd.training.experience import LATENT, LOGGED_LATER, Sample, StoredSteps
from amsd.training.problem import ControlProblem, remedy, require_finite
from amsd.training.rewards import require_finite_reward, reward_gradient
from amsd.training.sampling import dropped, sampled


@dataclass(frozen=True)
class AdjointExperience(StoredSteps):
    """M stored steps of each of B trajectories, batch first."""

    states: Tensor = field(metadata=LATENT)
    """x_k, (B, M, ...)."""
    adjoints: Tensor = field(metadata=LATENT)
    """The adjoint that x_k's control is matched to (a_{k+1} or a_k, by the recipe), (B, M, ...)."""
    base_predictions: Tensor = field(metadata=LATENT)
    """eps_0(x_k), guided as the control is, (B, M, ...)."""
    noises: Tensor | None = field(metadata=LATENT)
    """z_k, (B, M, ...); None where nothing uses importance weights."""
    sampler_predictions: Tensor | None = field(metadata=LATENT)
    """eps of the policy that sampled, guided as the sampler was, (B, M, ...); None likewise."""
    dropped: Tensor
    """Rows under prompt dropout, BoolTensor (B,)."""
    reward_gradient_norm: Tensor
    """(B,), on the CPU."""
    clamped_share: Tensor
    """Share of the decoded pixel values outside [0, 1], where the clamped image has no gradient, (B,), on the CPU."""
    adjoint_norm: Mapping[str, Tensor]
    """|a_k| at the `first` index that was needed, the `middle` one and the `last` (the terminal one), (B,), CPU."""
    initial_cosine: Tensor = field(metadata=LOGGED_LATER)
    """Cosine of the angle between the initial noise x_0 and the terminal latent x_N: what the sampler remembers."""

    def items(self, rows: Tensor, pass_index: int) -> Items:
        """The loss items of one pass for the given trajectories: `rows` (R,) times K steps, row by row."""
        columns = self.columns_of(rows, pass_index)
        row = rows.repeat_interleave(columns.shape[1])
        return Items(self, row, columns.flatten())


@dataclass(frozen=True)
class Items:
    """Steps of trajectories, as the loss sees them: item i is stored step `column[i]` of trajectory `row[i]`."""

    experience: AdjointExperience
    row: Tensor
    """LongTensor (M,)."""
    column: Tensor
    """LongTensor (M,)."""

    @property
    def indices(self) -> Tensor:
        """Step indices k, LongTensor (M,) on the CPU."""
        return self.experience.indices[self.row, self.column]

    def latent(self, name: str, device: torch.device) -> Tensor:
        """Rows of one of the latent tensors of the experience, (M, ...), float32 on `device`."""
        source: Tensor = getattr(self.experience, name)
        rows, columns = on_device(self.row, source.device), on_device(self.column, source.device)
        picked = source[rows, columns]
        return picked.to(device, torch.promote_types(picked.dtype, torch.float32))

    def conditioning(self, device: torch.device) -> Conditioning:
        """Conditions of the items, before dropout."""
        source = self.experience.conditioning
        return source.rows(on_device(self.row, source.prompt.hidden_states.device)).map(lambda value: value.to(device))

    @property
    def dropped(self) -> Tensor:
        """BoolTensor (M,)."""
        return self.experience.dropped[self.row]


def collect(
    problem: ControlProblem,
    method: AdjointMatching,
    samples: Sequence[Sample],
    passes: int,
    step: int,
    clock: PhaseClock,
) -> AdjointExperience:
    """Experience of trajectories, all at once, under the current policy, enough for `passes` passes of loss steps."""
    steps, prompts = problem.steps, [sample.prompt for sample in samples]
    with clock.phase("rollout"):
        conditioning, trajectory = sampled(problem, samples, step)
    with clock.phase("reward gradient"):
        terminal = reward_gradient(problem, trajectory.terminal, samples, method.smoothing)
        require_finite_reward(terminal, step, prompts)
    with clock.phase("adjoint"):
        available, count = len(steps.controlled), method.timesteps_per_trajectory
        plans = [plan_indices(available, count, passes, generator(*sample.key, "indices")) for sample in samples]
        stored = steps.controlled[torch.stack([plan.stored for plan in plans])]
        without_prompt = dropped(problem, samples)
        used = conditioning.dropped(without_prompt)
        shift = 1 if method.adjoint_at == "next" else 0
        lowest = stored.min(1).values + shift
        adjoint = _adjoint(problem, trajectory, -method.reward_multiplier * terminal.gradient, used, lowest)
        pick = torch.arange(len(stored))[:, None]
        matched = adjoint.adjoints[pick, stored + shift]
        require_finite(matched, "lean adjoint", step, "adjoint", prompts, remedy(problem.recipe))
        base = _base_predictions(problem, trajectory, adjoint, used, stored, lowest)
    weighed = method.needs_log_weights
    return AdjointExperience(
        prompts=tuple(prompts),
        conditioning=conditioning,
        rewards=terminal.rewards,
        terms=terminal.terms,
        indices=stored,
        columns=torch.stack([plan.columns for plan in plans]),
        states=trajectory.states[pick, stored],
        adjoints=matched,
        base_predictions=base,
        noises=trajectory.noises[pick, stored] if weighed else None,
        sampler_predictions=trajectory.predictions[pick, stored] if weighed else None,
        dropped=without_prompt,
        reward_gradient_norm=terminal.gradient.flatten(1).norm(dim=1).cpu(),
        clamped_share=terminal.clamped_share,
        adjoint_norm=_adjoint_norms(adjoint, lowest),
        initial_cosine=_initial_cosine(trajectory),
    )


def _adjoint(
    problem: ControlProblem, trajectory: Trajectory, terminal: Tensor, used: Conditioning, lowest: Tensor
) -> LeanAdjoint:
    base = problem.base(used, problem.adjoint_guidance)
    A, B = problem.steps.A, problem.steps.B
    with problem.policy.only_base():
        return lean_adjoint(terminal, trajectory.states, A, B, lambda x, k, rows: base.rows(rows)(x, k), lowest)


def _base_predictions(
    problem: ControlProblem,
    trajectory: Trajectory,
    adjoint: LeanAdjoint,
    used: Conditioning,
    stored: Tensor,
    lowest: Tensor,
) -> Tensor:
    """eps_0 at the stored steps (B, M, ...): taken from the adjoint's own pass where both are guided alike."""
    pick = torch.arange(len(stored))[:, None]
    known = adjoint.base_predictions[pick, stored]
    reusable = problem.adjoint_guidance == problem.control_guidance
    missing = (stored < lowest[:, None]) if reusable else torch.ones_like(stored, dtype=torch.bool)
    base = problem.base(used, problem.control_guidance)
    rows, columns = torch.nonzero(missing, as_tuple=True)
    if not len(rows):  # an empty tensor splits into one empty chunk, which attention layers refuse
        return known
    for chunk, column in zip(rows.split(len(stored)), columns.split(len(stored)), strict=True):
        k = stored[chunk, column]
        with torch.no_grad():
            known[chunk, column] = base.rows(chunk.to(problem.device))(trajectory.states[chunk, k], k)
    return known


def _adjoint_norms(adjoint: LeanAdjoint, lowest: Tensor) -> dict[str, Tensor]:
    norms = adjoint.adjoints.flatten(2).norm(dim=2).cpu()
    last = norms.shape[1] - 1
    middle = torch.maximum(torch.full_like(lowest, last // 2), lowest)
    rows = torch.arange(len(norms))
    return {"first": norms[rows, lowest], "middle": norms[rows, middle], "last": norms[:, last]}


def _initial_cosine(trajectory: Trajectory) -> Tensor:
    first, last = trajectory.states[:, 0].flatten(1), trajectory.terminal.flatten(1)
    return torch.cosine_similarity(first, last, dim=1).cpu()
