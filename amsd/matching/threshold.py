"""The moving quantile that masks outlier items of the loss (docs/method.md section 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DECAY = 0.9


@dataclass(frozen=True)
class QuantileThreshold:
    """Bias-corrected exponential moving average of a batch quantile; immutable, part of the resumable state."""

    average: float = 0.0
    """Uncorrected average."""
    batches: int = 0
    """Batches seen."""

    def updated(self, roots: Tensor, quantile: float) -> QuantileThreshold:
        """The threshold after one more global batch of sqrt(loss) values, of any shape."""
        value = float(torch.quantile(roots.detach().double().flatten(), quantile))
        return QuantileThreshold(DECAY * self.average + (1 - DECAY) * value, self.batches + 1)

    @property
    def value(self) -> float:
        """The threshold tau; infinite before the first batch."""
        return self.average / (1 - DECAY**self.batches) if self.batches else float("inf")

    def mask(self, roots: Tensor) -> Tensor:
        """Loss weights: 1 where sqrt(loss) lies below the threshold, else 0; same shape and dtype."""
        return (roots.detach() < self.value).to(roots.dtype)

    def clip(self, roots: Tensor) -> Tensor:
        """Loss weights min(1, tau / sqrt(loss)); same shape and dtype.

        The gradient of |u + sigma a|^2 in u has the size 2 sqrt(loss), so an outlier keeps its direction and pulls as
        hard as an item at the threshold. With heavy-tailed adjoints this loses less of the mean target than the mask.
        """
        return (self.value / roots.detach().clamp(min=torch.finfo(roots.dtype).tiny)).clamp(max=1)
