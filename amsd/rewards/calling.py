"""One call of a scorer, held to its contract: what it does wrong is said with its name, and touches nothing else."""

from __future__ import annotations

import math
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import amsd
from amsd.errors import AmsdError, RunError, UsageError
from amsd.reading import is_shortage
from amsd.recipe.methods import methods_with
from amsd.rewards.protocol import Reward

_OWN = str(Path(amsd.__file__).parent)
_SHOWN = 300


class RewardFailed(RunError):
    """A reward raised, ended the process, or returned something that is no score; the text names it."""


class WrongScores(RewardFailed):
    """What a reward returned is not one number per image."""


class NoGradient(UsageError):
    """A gradient is wanted of a reward that has none."""


@contextmanager
def happening(where: str) -> Iterator[None]:
    """Say of what a reward does wrong inside where in a run that was, such as `Step 3`.

    Raises:
        RewardFailed: the text names the place and the reward.
    """
    try:
        yield
    except (RewardFailed, NoGradient) as error:
        raise RewardFailed(f"{where}: {error}") from error


def call(reward: Reward, images: Tensor, prompts: Sequence[str], kind: str = "reward") -> Tensor:
    """Scores (B,), float32 on the images' device, of images (B, 3, H, W) in [0, 1], with gradient if those have one.

    The scorer gets copies: it may write into its input, and what it returns may be a buffer that it uses again.

    Raises:
        RewardFailed: it raised, or wanted to end the process; the place in the user's code is named.
        WrongScores: it returned something else than one number per image, or a number beyond float32.
        NoGradient: a gradient is wanted, and the scores have none.
        KeyboardInterrupt, and what says that memory is short: as it is.
    """
    wanted = torch.is_grad_enabled() and images.requires_grad
    try:
        scores = as_scores(_guarded(reward, images, prompts, kind), len(images), f"{kind} {reward.name!r}")
    except RewardFailed as error:
        if wanted and _LEAVES_TORCH in str(error):
            raise _no_gradient(reward, kind) from error
        raise
    if wanted and not scores.requires_grad:
        raise _no_gradient(reward, kind)
    return in_float32(scores, images.device, f"{kind} {reward.name!r}")


def in_float32(scores: Tensor, device: torch.device, who: str) -> Tensor:
    """A float32 copy of the scores (B,) on a device.

    Raises:
        WrongScores: a finite number does not fit, or they lie where they cannot be read.
    """
    try:
        own = scores.to(device, torch.float32, copy=True)
    except RuntimeError as error:
        if is_shortage(error):
            raise
        raise WrongScores(f"{who} returned scores on {scores.device}, which cannot be read: {error}") from error
    lost = scores.detach().isfinite().cpu() & ~own.detach().isfinite().cpu()
    if bool(lost.any()):
        value = float(scores.detach().cpu()[lost][0])
        raise WrongScores(f"{who} returned {value:g}, which is too large for float32: scale it down")
    return own


_LEAVES_TORCH = "numpy() on Tensor that requires grad"
"""What torch says where a function leaves it."""


def _no_gradient(reward: Reward, kind: str) -> NoGradient:
    names = methods_with(lambda method: not method.needs_reward_gradient)
    return NoGradient(
        f"{kind} {reward.name!r} has no gradient with respect to the images, so nothing can be trained on it by a "
        f"method that differentiates the reward. Set method.name = {names}, which needs none; or compute with torch "
        "on the images, without .detach(), .numpy() or no_grad; or only watch it: name it in evaluation.metrics."
    )


def _guarded(reward: Reward, images: Tensor, prompts: Sequence[str], kind: str) -> object:
    """What the scorer returns; what it raises is named, and what it switches is switched back."""
    try:
        with unchanged():
            return reward(images.clone(), list(prompts))
    except (AmsdError, KeyboardInterrupt):
        raise
    except SystemExit as error:
        raise RewardFailed(
            f"{kind} {reward.name!r} tried to end the process (SystemExit: {error.code}){place_of(error)}"
        ) from error
    except BaseException as error:
        if is_shortage(error):
            error.add_note(f"This happened in the {kind} {reward.name!r}.")
            raise
        text = " ".join(str(error).split())
        shown = f": {text[:_SHOWN]}{'...' if len(text) > _SHOWN else ''}" if text else ""
        raise RewardFailed(f"{kind} {reward.name!r} raised {type(error).__name__}{shown}{place_of(error)}") from error


@contextmanager
def unchanged() -> Iterator[None]:
    """Inside, a user's code runs: what it switches for the whole process is switched back, for others rely on it.

    That is the working directory, gradients, autocasting, and the default type and device of new tensors.
    """
    folder, gradients, autocast = _working_directory(), torch.is_grad_enabled(), _autocast()
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    try:
        yield
    finally:
        torch.set_grad_enabled(gradients)
        if torch.get_default_dtype() != dtype:
            torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(device)
        for kind, enabled in autocast.items():
            torch.set_autocast_enabled(kind, enabled)
        if folder is not None and _working_directory() != folder:
            os.chdir(folder)


def _autocast() -> dict[str, bool]:
    return {kind: torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")}


def _working_directory() -> str | None:
    """None where it was deleted meanwhile."""
    try:
        return os.getcwd()  # noqa: PTH109  # called often
    except OSError:
        return None


def place_of(error: BaseException) -> str:
    """Where the user's code was when it failed: the last frame that is neither ours nor an installed package's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [each for each in frames if not each.filename.startswith(_OWN) and "site-packages" not in each.filename]
    return f" ({own[-1].filename}, line {own[-1].lineno})" if own and own[-1].filename[:1] != "<" else ""


def as_scores(found: object, count: int, who: str) -> Tensor:
    """One number per image as a tensor (count,): from a tensor, a numpy array, or a list of numbers or tensors.

    For one image a number alone will do.

    Raises:
        WrongScores: it is something else; `who` returned it.
    """
    scores = _as_tensor(found)
    if scores is not None and count == 1 and scores.shape == ():
        scores = scores.reshape(1)
    if scores is None or scores.shape != (count,) or scores.is_complex():
        alone = scores is not None and scores.shape == () and not scores.is_complex()
        hint = "; each image needs a score of its own"
        if alone:
            hint += ": images come in batches (B, 3, H, W), or one by one with options = { images_per_call = 1 }"
        raise WrongScores(f"{who} returned {_described(found)} for {count} images{hint}")
    return scores if scores.is_floating_point() else scores.double()


def _as_tensor(found: object) -> Tensor | None:
    """The numbers in it, float or integer; None where it is not made of numbers."""
    if isinstance(found, Tensor):
        return found
    if isinstance(found, list | tuple):
        return _stacked(found)
    if isinstance(found, str | bytes) or found is None:
        return None
    if isinstance(found, bool | int | float):
        return _number(found)
    try:  # numpy's arrays and numbers, and whatever else can be read as an array
        import numpy as np

        array = np.asarray(found)
        return torch.from_numpy(np.array(array, dtype=np.float64)) if array.dtype.kind in "bfiu" else None
    except (TypeError, ValueError):
        return None


def _stacked(found: Sequence[Any]) -> Tensor | None:
    """A list of numbers; with gradient, where tensors in it have one."""
    parts = [_as_tensor(each) for each in found]
    if any(part is None or part.numel() != 1 for part in parts):
        return None
    flat = [part.reshape(()) for part in parts if part is not None]
    if not flat:
        return torch.empty(0)
    if any(part.is_complex() for part in flat):
        return None
    device = next((part.device for part in flat if part.device.type != "cpu"), flat[0].device)
    return torch.stack([part.to(device, torch.float64) for part in flat])


def _number(value: float) -> Tensor:
    try:
        return torch.tensor(float(value), dtype=torch.float64)
    except OverflowError:  # an integer beyond float64
        return torch.tensor(math.inf, dtype=torch.float64)


def _described(found: object) -> str:
    if isinstance(found, Tensor):
        return f"a tensor of shape {tuple(found.shape)} and type {found.dtype}"
    shape = getattr(found, "shape", None)
    if isinstance(shape, tuple) and shape:
        return f"a {type(found).__name__} of shape {shape} and type {getattr(found, 'dtype', '?')}"
    if isinstance(found, list | tuple):
        kinds = ", ".join(sorted({type(each).__name__ for each in found}))
        return f"a {type(found).__name__} of {len(found)} {kinds or 'values'}"
    if found is None:
        return "None"
    text = repr(found)
    return f"{text[:60]}{'...' if len(text) > 60 else ''} (a {type(found).__name__})"
