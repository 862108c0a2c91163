"""Image embeddings for diversity: pixels, CLIP and DreamSim."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from amsd.errors import UsageError
from amsd.rewards.clip import OPENAI_LARGE, CLIPImages, load_clip
from amsd.rewards.networks import device_of, fingerprint, freeze, full_precision
from amsd.rewards.preprocess import resize

_DREAMSIM_SIDE = 224


class PixelEmbedder:
    """The image itself, averaged down to `size` x `size`; needs no weights.

    Args:
        size: side of the small image in pixels; images of less are kept as they are.
    """

    name = "pixels"

    def __init__(self, size: int = 32) -> None:
        if size < 1:
            raise ValueError(f"size is {size}; expected a positive number of pixels")
        self.size = size
        self.version = f"1-{size}"

    def __call__(self, images: Tensor) -> Tensor:
        """Embeddings (B, D), float32, of images (B, 3, H, W) in [0, 1]."""
        height, width = (min(self.size, side) for side in images.shape[-2:])
        return adaptive_avg_pool2d(images.float(), (height, width)).flatten(1)

    def to(self, device: torch.device | str) -> Self:
        """Nothing to move: the computation follows the images."""
        return self


class CLIPEmbedder:
    """Unit CLIP image embeddings.

    Args:
        model: transformers folder or hub repository of a CLIP model.
        revision: git revision on the hub.
    """

    name = "clip"

    def __init__(self, model: str = OPENAI_LARGE, revision: str | None = None) -> None:
        self._model = load_clip(model, f"embedder {self.name!r}, option model", revision)
        self._images = CLIPImages(self._model)
        self.version = f"1-{fingerprint(self._model.vision_model, fingerprint(self._model.visual_projection))}"

    def __call__(self, images: Tensor) -> Tensor:
        """Embeddings (B, D), float32, of images (B, 3, H, W) in [0, 1]."""
        return self._images(images).to(images.device)

    def to(self, device: torch.device | str) -> Self:
        """Move the weights."""
        self._model.to(device)
        return self


class DreamSimEmbedder:
    """DreamSim embeddings (Fu et al. 2023): cosine distances follow human similarity; centered and of unit length.

    The package fetches its release files, and for DINO backbones that network's code, on first use.

    Args:
        folder: where the weights lie or go; unset: `dreamsim` in torch's hub folder.
        type: variant, such as "ensemble" (the published metric), "dino_vitb16" or "clip_vitb32".
    """

    name = "dreamsim"

    def __init__(self, folder: str | None = None, type: str = "ensemble") -> None:  # noqa: A002 - the package's word
        place = Path(folder).expanduser() if folder else Path(torch.hub.get_dir()) / "dreamsim"
        self._model = _load_dreamsim(place, type)
        freeze(self._model)
        self.version = f"1-{fingerprint(self._model, type)}"

    def __call__(self, images: Tensor) -> Tensor:
        """Embeddings (B, D), float32, of images (B, 3, H, W) in [0, 1]; squashed to 224 x 224 as the original does."""
        device = device_of(self._model)
        squashed = resize(images.float().to(device), _DREAMSIM_SIDE, _DREAMSIM_SIDE)
        with full_precision(device):
            embeddings: Tensor = self._model.embed(squashed)
        return embeddings.reshape(len(images), -1).to(images.device)

    def to(self, device: torch.device | str) -> Self:
        """Move the weights."""
        self._model.to(device)
        for extractor in self._model.extractor_list:
            extractor.device = torch.device(device)  # the package keeps a projection beside its modules
        return self


def _load_dreamsim(folder: Path, variant: str) -> Any:
    try:
        from dreamsim import dreamsim
        from dreamsim.config import dreamsim_args
    except ModuleNotFoundError as error:
        raise UsageError("embedder 'dreamsim' needs the package dreamsim: uv pip install 'amsd[rewards]'") from error
    variants = dreamsim_args["model_config"]
    if variant not in variants:
        raise UsageError(f"embedder 'dreamsim', option type = {variant!r}; expected one of {', '.join(variants)}")
    folder.mkdir(parents=True, exist_ok=True)
    hub_folder = torch.hub.get_dir()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the package prints
            model, _ = dreamsim(pretrained=True, device="cpu", cache_dir=str(folder), dreamsim_type=variant)
    except OSError as error:
        raise UsageError(
            f"embedder 'dreamsim': its weights are not in {folder} and cannot be downloaded ({error}). "
            "Run once while online, or use 'clip' or 'pixels' in evaluation.diversity."
        ) from error
    finally:
        torch.hub.set_dir(hub_folder)  # the package moves it
    return model
