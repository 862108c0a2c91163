"""The moving quantile that masks outlier items of the loss (method.md section 4)."""

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
        """1 where sqrt(loss) lies below the threshold, else 0; same shape and dtype."""
        return (roots.detach() < self.value).to(roots.dtype)
