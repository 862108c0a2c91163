"""What is not finite is refused where it arises: weights of files, and images, which would be black as 8-bit ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from amsd.errors import Diverged, UsageError

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


def _finite(value: Tensor) -> bool:
    """Whether all numbers are: their sum tells, in a range that finite numbers of a file do not leave."""
    if not value.is_floating_point():
        return True
    wide = value if value.itemsize >= 4 else value.float()  # float8 has no sums, and those of float16 overflow
    return bool(wide.sum().isfinite()) or bool(wide.isfinite().all())


def require_finite_file(parameters: Iterable[tuple[str, Tensor]], what: str) -> None:
    """Check weights that were read from a file; `what` names it.

    Raises:
        UsageError: a weight is NaN or infinite; it is named.
    """
    for name, value in parameters:
        if not _finite(value.detach()):
            raise UsageError(f"{what}: the weights of {name} are not finite. The file is damaged; download it again.")
