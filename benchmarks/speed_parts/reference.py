"""The reference implementation's procedure, written from docs/method.md with amsd's own parts.

What it does otherwise than amsd: the adjoint runs through all N steps whatever the loss will use, the control is
matched to a_k, the last step ends half way (`final_step = "midpoint"`), and there is neither weight decay nor gradient
clipping. Its counts, 212.0 forward-equivalents per trajectory on-policy at N = 50, guided, and 32.0 from a buffer of
ten passes, are those that hooks on the published trainers gave.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amsd.diffusion.guidance import Conditioning
from amsd.diffusion.noise import generator, normal
from amsd.diffusion.rollout import rollout
from amsd.diffusion.steps import at
from amsd.matching import QuantileThreshold, control, lean_adjoint, matching_loss, stratified_indices
from amsd.training.problem import ControlProblem

QUANTILE = 0.9
"""Of sqrt(loss): items above it are left out."""


@dataclass(frozen=True)
class ReferenceExperience:
    """B trajectories, everything kept: states and adjoints (B, N + 1, ...), base predictions (B, N, ...)."""

    states: Tensor
    adjoints: Tensor
    base: Tensor
    conditioning: Conditioning


class Reference:
    """The procedure on a problem; `passes` > 1 is its buffer, used in that many passes."""

    def __init__(self, problem: ControlProblem, prompts: list[str], *, batch: int, rate: float, warmup: int, seed: int,
                 reward_multiplier: float, loss_steps: int, passes: int = 1) -> None:  # fmt: skip
        self.problem, self.prompts, self.batch, self.seed = problem, prompts, batch, seed
        self.rate, self.warmup, self.passes = rate, warmup, passes
        self.reward_multiplier, self.loss_steps = reward_multiplier, loss_steps
        self.parameters = list(problem.policy.trainable.values())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
        self.threshold = QuantileThreshold()
        self.experience: ReferenceExperience | None = None

    def update(self, number: int) -> None:
        """The optimizer step `number`, counted from 1."""
        if (number - 1) % self.passes == 0 or self.experience is None:
            self.experience = self._collect(number)
        loss = self._loss(self.experience, number)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * min(1.0, number / max(1, self.warmup))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def _collect(self, number: int) -> ReferenceExperience:
        problem, scale = self.problem, self.problem.recipe.guidance.guidance_scale
        drawn = torch.randint(len(self.prompts), (self.batch,), generator=generator(self.seed, "prompts", number))
        texts = [self.prompts[index] for index in drawn.tolist()]
        with torch.no_grad():
            conditioning = problem.encode(texts)
        keys = [(self.seed, "reference", number, row) for row in range(self.batch)]
        noise = normal(keys, (len(problem.steps) + 1, *problem.family.latent_shape), problem.device, torch.float32)
        trajectory = rollout(problem.finetuned(conditioning, scale), problem.steps, noise)
        x = trajectory.terminal.detach().requires_grad_(True)
        reward = problem.reward(problem.family.decode(x).clamp(0, 1), texts).total.sum()
        (gradient,) = torch.autograd.grad(reward, x)
        base, steps = problem.base(conditioning, problem.adjoint_guidance), problem.steps
        lowest = torch.zeros(self.batch, dtype=torch.long)
        with problem.policy.only_base():
            adjoint = lean_adjoint(
                -self.reward_multiplier * gradient, trajectory.states, steps.A, steps.B,
                lambda x, k, rows: base.rows(rows)(x, k), lowest,
            )  # fmt: skip
        return ReferenceExperience(trajectory.states, adjoint.adjoints, adjoint.base_predictions, conditioning)

    def _loss(self, experience: ReferenceExperience, number: int) -> Tensor:
        """Mean over items of |c (eps_theta - eps_0) + sigma a_k|^2, outliers of this batch left out."""
        problem, steps = self.problem, self.problem.steps
        available = len(steps.controlled)
        drawn = [
            stratified_indices(available, self.loss_steps, generator(self.seed, "indices", number, row))
            for row in range(self.batch)
        ]
        k = steps.controlled[torch.stack(drawn)].flatten()
        row = torch.arange(self.batch).repeat_interleave(self.loss_steps)
        x = experience.states[row, k]
        predict = problem.finetuned(experience.conditioning.rows(row), problem.control_guidance)
        u = control(predict(x, k), experience.base[row, k], at(steps.control_scale, k, x))
        losses = matching_loss(u, experience.adjoints[row, k], at(steps.sigma, k, x)).loss
        roots = losses.detach().sqrt()
        self.threshold = self.threshold.updated(roots, QUANTILE)
        return (losses * self.threshold.mask(roots)).mean()
