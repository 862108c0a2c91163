"""HPS v2.1: human preference score on an OpenCLIP model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from amsd.errors import UsageError
from amsd.reading import read_json, reading
from amsd.rewards.checkpoints import fill, find_file, load_tensors
from amsd.rewards.eight_bit import EightBitPath
from amsd.rewards.networks import device_of, fingerprint, freeze, full_precision
from amsd.rewards.preprocess import ClipPixels, check_pairs

_BUFFERS = frozenset({"attn_mask"})
"""Buffers that older files store and that the present network computes."""


class HPSv21(EightBitPath):
    """Human Preference Score v2.1 (Wu et al. 2023): cosine of a fine-tuned OpenCLIP ViT-H/14; about 0.2 to 0.35.

    Args:
        checkpoint: `HPS_v2.1_compressed.pt`: path or `hub:OWNER/REPOSITORY/FILE`.
        architecture: OpenCLIP's name of the architecture, or a JSON file with its configuration.
        sha256: expected hash of the checkpoint.
        eight_bit: score as the original does with pictures on disk, without gradient.
    """

    name = "hps-v2.1"

    def __init__(
        self,
        checkpoint: str = "hub:xswu/HPSv2/HPS_v2.1_compressed.pt",
        architecture: str = "ViT-H-14",
        sha256: str | None = None,
        eight_bit: bool = False,
    ) -> None:
        what = f"reward {self.name!r}, option checkpoint"
        path = find_file(checkpoint, what, sha256)
        open_clip = _open_clip()
        configuration = _configuration(architecture)
        state = load_tensors(path, what)
        with reading(f"reward {self.name!r}, option architecture", architecture):
            self._model = open_clip.CLIP(**configuration)
        fill(self._model, {key: value for key, value in state.items() if key not in _BUFFERS}, what)
        freeze(self._model)
        self._tokenizer = open_clip.SimpleTokenizer(context_length=self._model.context_length)
        self._images = ClipPixels(configuration["vision_cfg"]["image_size"], eight_bit)
        self._fingerprint = fingerprint(self._model)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) of images (B, 3, H, W) in [0, 1]."""
        check_pairs(images, prompts)
        device = device_of(self._model)
        with full_precision(device):
            seen = self._model.encode_image(self._images(images.to(device)), normalize=True)
            with torch.no_grad():
                meant = self._model.encode_text(self._tokenizer(list(prompts)).to(device), normalize=True)
            scores: Tensor = (seen * meant).sum(-1)
        return scores.to(images.device)

    def to(self, device: torch.device | str) -> Self:
        """Move the weights."""
        self._model.to(device)
        return self

    def truncated(self, prompts: Sequence[str]) -> int:
        """How many prompts have more than 77 tokens, start and end included."""
        return sum(len(self._tokenizer.encode(prompt)) + 2 > self._model.context_length for prompt in prompts)


def _open_clip() -> Any:
    try:
        import open_clip
    except ModuleNotFoundError as error:
        raise UsageError("reward 'hps-v2.1' needs open_clip: uv pip install 'amsd[rewards]'") from error
    return open_clip


def _configuration(architecture: str) -> dict[str, Any]:
    if architecture.endswith(".json"):
        path = Path(architecture).expanduser()
        if not path.is_file():
            raise UsageError(f"reward 'hps-v2.1', option architecture = {architecture!r}: no such file")
        return read_json(path, "reward 'hps-v2.1', option architecture")
    known = _open_clip().get_model_config(architecture)
    if known is None:
        raise UsageError(
            f"reward 'hps-v2.1', option architecture = {architecture!r}: open_clip has no such architecture"
        )
    return dict(known)
