"""The Adjoint Matching loss (Adjoint Matching paper, eq. 37; docs/method.md section 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MatchingLoss:
    """Per-item terms of the loss; an item is one step of one trajectory."""

    loss: Tensor
    """l = |u + sigma a|^2 summed over latent dimensions, (M,), differentiable in the fine-tuned prediction."""
    control_norm: Tensor
    """|u|^2, (M,), detached."""
    target_norm: Tensor
    """|sigma a|^2, (M,), detached."""
    work: Tensor
    """-u . sigma a, (M,), detached: what the control adds to lambda r, to first order; |u|^2 for u at its target."""
    log_weights: Tensor
    """Step-wise log importance weight of stored experience, (M,), detached; 0 where nothing uses it."""
    prediction_ratio: Tensor
    """|eps_theta| / |eps_0|, (M,), detached; 1 where it was not measured."""


def control(prediction: Tensor, base_prediction: Tensor, control_scale: Tensor | float) -> Tensor:
    """u = c (eps_theta - eps_0), (M, ...): the sqrt(dt) u of the paper; `control_scale` broadcasts over (M, ...)."""
    return control_scale * (prediction - base_prediction)


def matching_loss(u: Tensor, adjoint: Tensor, sigma: Tensor) -> MatchingLoss:
    """Squared distance of the controls u (M, ...) to their targets -sigma a; `sigma` broadcasts over (M, ...).

    With a = a_{k+1} this matches the discrete-time optimality condition u_k = -sigma_k E[grad V_{k+1}(x_{k+1})].
    """
    target = sigma * adjoint
    loss = _squared_norm(u + target)
    return MatchingLoss(
        loss=loss,
        control_norm=_squared_norm(u.detach()),
        target_norm=_squared_norm(target),
        work=-(u.detach() * target).flatten(1).sum(1),
        log_weights=torch.zeros_like(loss.detach()),
        prediction_ratio=torch.ones_like(loss.detach()),
    )


def step_weights(control_scale: Tensor, power: int) -> Tensor:
    """Weight |c_k|^-power of each step's loss (N,), with mean 1 over the steps that have a control; 0 for the others.

    The loss is c_k^2 |eps_theta - eps_0 - target_k|^2: where c_k is small, at high noise, it pulls little at the
    prediction. Weights by step leave the minimum of each step where it is.
    """
    weights = control_scale.abs().pow(-power) * control_scale.isfinite()
    return weights / weights[control_scale.isfinite()].mean()


def norm_ratio(prediction: Tensor, base_prediction: Tensor) -> Tensor:
    """|eps_theta| / |eps_0| of each item, (M,), detached: far from 1 the policy has left the base's scale."""
    norms = [_squared_norm(value.detach().float()).sqrt() for value in (prediction, base_prediction)]
    return norms[0] / norms[1].clamp(min=1e-12)


def _squared_norm(value: Tensor) -> Tensor:
    return value.flatten(1).square().sum(1)
