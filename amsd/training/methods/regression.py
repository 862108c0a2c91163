"""Regression at re-noised endpoints: what methods without an adjoint equation share (docs/method.md section 9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from amsd.diffusion.guidance import Conditioning
from amsd.diffusion.noise import generator, normal
from amsd.diffusion.rollout import Trajectory
from amsd.diffusion.steps import at
from amsd.matching import inverse_probabilities, norm_ratio, stratified_indices
from amsd.recipe.methods.regression import RegressionSection
from amsd.training.experience import LATENT, ItemLosses, Rewarded, Sample
from amsd.training.optimization import WeightAverage
from amsd.training.record import means, reward_values
from amsd.training.sampling import sampled
from amsd.training.sources import Batch
from amsd.training.trainer import SOCTrainer


@dataclass(frozen=True)
class PathPoints(Rewarded):
    """K path points of each of B endpoints, with what the prediction should be there."""

    indices: Tensor
    """Steps k, LongTensor (B, K) on the CPU."""
    states: Tensor = field(metadata=LATENT)
    """x_k, (B, K, ...)."""
    base_predictions: Tensor = field(metadata=LATENT)
    """The base's prediction at x_k, guided as the control is, (B, K, ...)."""
    targets: Tensor = field(metadata=LATENT)
    """What the loss matches the prediction to, (B, K, ...)."""
    dropped: Tensor
    """Rows under prompt dropout, BoolTensor (B,)."""
    clamped_share: Tensor
    """Share of the decoded pixel values outside [0, 1], (B,), on the CPU."""
    groups: Tensor
    """Number of the group of samples that share a prompt, LongTensor (B,) on the CPU."""
    noted: Mapping[str, Tensor]
    """Values of each endpoint that are only logged, (B,) each, on the CPU."""
    endpoints: Tensor | None = None
    """Terminal latents (B, ...) that are scored once their groups are whole; None where they have been."""


class RegressionTrainer(SOCTrainer[PathPoints]):
    """|prediction - target|^2 at path points; a child class says what the targets are."""

    experience_class = PathPoints

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sampler = WeightAverage(self.parameters, self.method.sampler_decay)

    @property
    def method(self) -> RegressionSection:
        """The recipe's `[method]`."""
        assert isinstance(self.recipe.method, RegressionSection)
        return self.recipe.method

    @property
    def available(self) -> int:
        """How many steps, from the noisiest on, path points are drawn from."""
        return len(self.problem.steps)

    @property
    def sampled(self) -> int:
        """How many steps of the sampler an endpoint takes."""
        return len(self.problem.steps)

    def item_weights(self, k: Tensor) -> Tensor:
        """Weight of the losses at steps k (M,), float64, on the CPU."""
        return torch.ones(len(k), dtype=torch.float64)

    def draw(self, samples: Sequence[Sample], step: int) -> tuple[Conditioning, Trajectory]:
        """Trajectories of the averaged policy, guided as the sampler is; call it inside `self.sampler.applied()`."""
        return sampled(self.problem, samples, step, self.sampled)

    def indices(self, samples: Sequence[Sample]) -> Tensor:
        """K steps for each sample, LongTensor (B, K)."""
        available, count = self.available, self.method.timesteps_per_trajectory
        return torch.stack([stratified_indices(available, count, generator(*s.key, "indices")) for s in samples])

    def noises(self, samples: Sequence[Sample]) -> Tensor:
        """Fresh noise for each path point, (B, K, ...)."""
        shape = (self.method.timesteps_per_trajectory, *self.problem.family.latent_shape)
        return normal([(*s.key, "renoising") for s in samples], shape, self.problem.device, torch.float32)

    @torch.no_grad()
    def predictions(self, network: str, conditioning: Conditioning, states: Tensor, indices: Tensor) -> Tensor:
        """Prediction of the `base` or the `finetuned` policy at path points (B, K, ...), guided as the control is."""
        make = self.problem.base if network == "base" else self.problem.finetuned
        predict = make(conditioning, self.problem.control_guidance)
        return torch.stack([predict(states[:, j], indices[:, j]) for j in range(indices.shape[1])], 1)

    def losses(self, experience: PathPoints, rows: Tensor, pass_index: int) -> ItemLosses:
        """Mean squared distance of each prediction to its target."""
        device, used = self.problem.device, experience.rows(rows)
        count = used.indices.shape[1]
        x, base, target = (
            value.flatten(0, 1).to(device, torch.float32)
            for value in (used.states, used.base_predictions, used.targets)
        )
        conditioning = used.conditioning.map(lambda value: value.to(device)).dropped(used.dropped)
        conditioning = conditioning.rows(torch.arange(len(rows)).repeat_interleave(count))
        k = used.indices.flatten()
        prediction = self.problem.finetuned(conditioning, self.problem.control_guidance)(x, k)
        steps = self.problem.steps
        scale = at(steps.control_scale.where(steps.sigma > 0, 0.0), k, x)  # without noise there is no control
        moved = (scale * (prediction.detach() - base)).flatten(1).square().sum(1)
        weights = self.item_weights(k).to(prediction)
        return ItemLosses(
            weights * (prediction - target).flatten(1).square().mean(1),
            {
                "index": k,
                "control_norm": moved,
                "target_square": target.flatten(1).square().mean(1),
                "move_square": (target - base).flatten(1).square().mean(1),
                "prediction_ratio": norm_ratio(prediction, base),
            },
        )

    def step_values(self, batch: Batch[PathPoints], items: ItemLosses) -> dict[str, float]:
        """Rewards, the size of the targets by noise level, and an estimate of the KL divergence."""
        used = batch.experience
        values = reward_values(used.rewards[batch.rows], used.terms, batch.rows)
        values |= means({"clamped_share": used.clamped_share[batch.rows]})
        values |= means({name: value[batch.rows] for name, value in used.noted.items()})
        index, count = items.logged["index"], self.method.timesteps_per_trajectory
        weights = inverse_probabilities(self.available, index.view(-1, count)).flatten()
        kl = 0.5 * float((items.logged["control_norm"].double() * weights).sum()) * count / len(index)
        noisy = index < self.available // 2
        target = items.logged["target_square"]
        for name, part in (("noisy_half", target[noisy]), ("clean_half", target[~noisy])):
            if len(part):
                values[f"target_square/{name}"] = float(part.mean())
        return values | {
            "target_square": float(target.mean()),
            "move_square": float(items.logged["move_square"].mean()),
            "prediction_ratio": float(items.logged["prediction_ratio"].mean()),
            "kl": kl,
        }

    def after_step(self, items: ItemLosses) -> None:
        """The policy that samples follows slowly."""
        self.sampler.update()

    def state(self) -> dict[str, Any]:
        """How far the average is."""
        return {"sampler_updates": self.sampler.updates}

    def state_tensors(self) -> dict[str, Tensor]:
        """The averaged weights by the names of the trained ones."""
        return dict(zip(self.problem.policy.trainable, self.sampler.shadow, strict=True))

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on with the average."""
        self.sampler.restore([tensors[name] for name in self.problem.policy.trainable], state["sampler_updates"])
