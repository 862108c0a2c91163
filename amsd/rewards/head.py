"""The score head that ImageReward and the LAION aesthetic predictor share."""

from __future__ import annotations

from torch import Tensor, nn


class ScoreHead(nn.Module):
    """Linear layers width-1024-128-64-16-1 without activations between them; dropout only while training.

    Attribute and index names are those of both original checkpoints (`layers.0`, `.2`, `.4`, `.6`, `.7`).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024), nn.Dropout(0.2),
            nn.Linear(1024, 128), nn.Dropout(0.2),
            nn.Linear(128, 64), nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        """Scores (B,) of features (B, width)."""
        scores: Tensor = self.layers(features)
        return scores.squeeze(1)
