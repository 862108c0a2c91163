"""Any no-reference metric of pyiqa as a reward. pyiqa's license is PolyForm-Noncommercial."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, Self

import torch
from torch import Tensor

from amsd.errors import RunError, UsageError
from amsd.hub import failing_fast
from amsd.rewards.calling import NoGradient
from amsd.rewards.networks import device_of, fingerprint, freeze, full_precision
from amsd.rewards.preprocess import check_pairs
from amsd.rewards.table import has_gradient

LICENSE = (
    "pyiqa is licensed under PolyForm-Noncommercial: pyiqa metrics and what is trained on them may not be used "
    "commercially."
)
_LOG = logging.getLogger(__name__)
_said: list[str] = []
"""The license is stated once per process."""
_OF_SETS = frozenset({"fid", "sfid", "fid_dinov2", "inception_score"})
"""Metrics of folders of images, not of an image."""
_READS_PROMPTS = frozenset({"clipscore"})


class PyIQAReward:
    """The pyiqa metric of this name, turned so that higher is better.

    Args:
        metric: pyiqa's name of a no-reference metric, such as `musiq`, `topiq_nr`, `clipiqa+`, `liqe`.
        trust_pickle: let pyiqa read its checkpoints with pickle, which can run code; needed only where it says so.
        **options: passed to the metric, such as `pretrained = false`.

    Raises:
        UsageError: pyiqa or the metric is unknown, it needs a reference image or sets of images, or its weights
            cannot be had.
    """

    def __init__(self, metric: str, trust_pickle: bool = False, **options: Any) -> None:
        self.name = f"pyiqa:{metric}"
        self._metric = metric
        self._differentiable = has_gradient(self.name) is not False  # some are made of counts and thresholds
        pyiqa, known = _import()
        _check_metric(metric, known)
        self._scorer = _build(self.name, metric, self._differentiable, trust_pickle, options)
        self._sign = -1.0 if self._scorer.lower_better else 1.0
        freeze(self._scorer)
        self.version = f"{pyiqa.__version__}-{fingerprint(self._scorer.net, repr(sorted(options.items())))}"

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) of images (B, 3, H, W) in [0, 1]; negated where pyiqa's lower is better.

        Raises:
            UsageError: a gradient is wanted and the metric has none.
            RunError: the metric does not return one score per image.
        """
        check_pairs(images, prompts)
        trained_on = images.requires_grad and torch.is_grad_enabled()
        if trained_on and not self._differentiable:
            raise self._no_gradient()
        device = device_of(self._scorer)
        captions = {"caption_list": list(prompts)} if self._metric in _READS_PROMPTS else {}
        with full_precision(device):
            scores: Tensor = self._scorer(images.float().to(device), **captions)
        if scores.numel() != len(images):
            raise RunError(f"reward {self.name!r} returned shape {tuple(scores.shape)} for {len(images)} images")
        if trained_on and not scores.requires_grad:
            raise self._no_gradient()
        scores = self._sign * scores.float().reshape(-1).to(images.device)
        return scores if trained_on else scores.detach()

    def to(self, device: torch.device | str) -> Self:
        """Move the weights."""
        self._scorer.to(device)
        return self

    def truncated(self, prompts: Sequence[str]) -> int:
        """Metrics of images read no prompt; `clipscore` cuts at CLIP's 77 tokens, after its prefix."""
        if self._metric not in _READS_PROMPTS:
            return 0
        tokenizer = import_module("clip.simple_tokenizer").SimpleTokenizer()
        return sum(len(tokenizer.encode(f"{self._scorer.net.prefix} {prompt}")) + 2 > 77 for prompt in prompts)

    def _no_gradient(self) -> UsageError:
        return NoGradient(
            f"reward {self.name!r} has no gradient, so nothing can be trained on it. "
            "To watch it, name it in evaluation.metrics; to train on quality, try 'pyiqa:musiq' or 'pyiqa:topiq_nr'."
        )


def _import() -> tuple[Any, dict[str, Any]]:
    try:
        import pyiqa
        from pyiqa.default_model_configs import DEFAULT_CONFIGS
    except ModuleNotFoundError as error:
        raise UsageError(
            f"pyiqa:METRIC needs pyiqa (missing: {error.name}). Install it with `uv pip install 'amsd[pyiqa]'` (no "
            'commercial use), or name metrics without it, such as evaluation.metrics = ["clip-score"].'
        ) from error
    if not _said:
        _LOG.warning("%s", LICENSE)
        _said.append(LICENSE)
    return pyiqa, DEFAULT_CONFIGS


def _check_metric(metric: str, known: dict[str, Any]) -> None:
    from difflib import get_close_matches

    usable = [name for name, entry in known.items() if entry.get("metric_mode") != "FR" and name not in _OF_SETS]
    if metric not in known:
        close = get_close_matches(metric, usable, n=3, cutoff=0.4)
        hint = f"Did you mean {', '.join(close)}?" if close else f"Known: {', '.join(usable)}."
        raise UsageError(f"pyiqa has no metric {metric!r}. {hint}")
    if metric in _OF_SETS:
        raise UsageError(f"'pyiqa:{metric}' compares sets of images; a reward scores each image")
    if metric not in usable:
        raise UsageError(f"'pyiqa:{metric}' compares an image with a reference image; a sampled image has none")


def _build(name: str, metric: str, as_loss: bool, trust_pickle: bool, options: dict[str, Any]) -> Any:
    from pickle import UnpicklingError

    from pyiqa.models.inference_model import InferenceModel

    try:
        with contextlib.redirect_stdout(io.StringIO()), _weights_only(not trust_pickle), failing_fast():  # pyiqa prints
            return InferenceModel(metric, as_loss=as_loss, loss_reduction="none", device=torch.device("cpu"), **options)
    except UnpicklingError as error:
        raise UsageError(
            f"reward {name!r}: its checkpoint holds more than tensors. If you trust pyiqa's files, "
            "set options = { trust_pickle = true }."
        ) from error
    except (KeyError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        given = f" with {options}" if options else ""
        raise UsageError(f"reward {name!r} cannot be built{given}: {type(error).__name__}: {error}") from error
    except OSError as error:
        raise UsageError(
            f"reward {name!r}: its weights are not on this machine and cannot be downloaded ({error}). "
            "Run once while online; pyiqa keeps them in torch's hub folder ($TORCH_HOME/hub/pyiqa)."
        ) from error


@contextlib.contextmanager
def _weights_only(enforced: bool) -> Iterator[None]:
    """Make every `torch.load` inside refuse pickled code, also where the caller asks for it."""
    key = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(key)
    if enforced:
        os.environ[key] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = before
