"""Images that are not finite are refused where they arise: as 8-bit pictures they would be black, and get a score."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amsd.errors import Diverged

DIVERGED = (
    "Either the weights have diverged (lower optimizer.learning_rate or method.reward_multiplier), or the networks "
    'overflow in this precision (try model.precision = "fp32").'
)


def require_finite_images(images: Tensor, prompts: Sequence[str]) -> None:
    """Check decoded images (B, ...), one per prompt.

    Raises:
        Diverged: an image has a value that is not finite; its prompt is named.
    """
    finite = images.detach().isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        rows = torch.nonzero(~finite).flatten().tolist()
        shown = "; ".join(dict.fromkeys(repr(prompts[row]) for row in rows[:3]))
        raise Diverged(f"{len(rows)} of {len(images)} images are not finite and are not scored ({shown}). {DIVERGED}")
