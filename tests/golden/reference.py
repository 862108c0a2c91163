"""The reference's numbers, its networks, and the comparison that keeps count of what was compared.

The numbers are outputs of microsoft/soc-fine-tuning-sd in float64 on tiny fixed inputs; every random input is stored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor

from amsd.diffusion.families.ddim_scheduler import SOCDDIMScheduler
from amsd.recipe import Schedule

FOLDER = Path(__file__).parent
BETAS = {"sd15": (0.00085, 0.012), "ft": (0.002, 0.009)}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
"""Largest difference, relative to a tensor's maximum, by the precision of the computation."""


class Golden:
    """One file of stored tensors."""

    def __init__(self, name: str) -> None:
        self._tensors = load_file(FOLDER / f"{name}.safetensors")
        self._compared: set[str] = set()

    def __getitem__(self, key: str) -> Tensor:
        return self._tensors[key]

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def agrees(self, key: str, value: Tensor | float, tolerance: float, part: Any = None) -> None:
        """Compare with the stored tensor (or `part` of it), relative to its maximum, and note that it was compared.

        A tensor that is zero up to rounding is compared with the tolerance itself.
        """
        stored = self[key].double()
        expected = stored if part is None else stored[part]
        found = value.detach().double() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        assert found.shape == expected.shape, f"{key}: shape {tuple(found.shape)}, stored {tuple(expected.shape)}"
        scale = float(stored.abs().max())
        allowed = tolerance * (scale if scale > 1e-9 else 1.0)
        difference = float((found - expected).abs().max()) if found.numel() else 0.0
        assert difference <= allowed, f"{key}: differs by {difference:.3g}, allowed {allowed:.3g}"
        self._compared.add(key)

    def missed(self) -> set[str]:
        """Stored results (`in/...` are inputs) that nothing was compared with."""
        return {key for key in self._tensors if not key.startswith("in/")} - self._compared


def unet(files: Iterable[str], dtype: torch.dtype) -> UNet2DConditionModel:
    """The network of the named weight files, later ones on top."""
    config = json.loads((FOLDER / "unet_config.json").read_text(encoding="utf-8"))
    network = UNet2DConditionModel(**{key: value for key, value in config.items() if not key.startswith("_")})
    state: dict[str, Tensor] = {}
    for file in files:
        state |= load_file(FOLDER / f"{file}.safetensors")
    network.load_state_dict(state)
    return network.to(dtype).eval()


def scheduler(betas: str = "ft", count: int = 10, prediction: str = "epsilon") -> SOCDDIMScheduler:
    """The sampler of the reference: trailing grid, last step to the midpoint."""
    model = DDIMScheduler(clip_sample=False, steps_offset=1, prediction_type=prediction)
    start, end = BETAS[betas]
    schedule = Schedule(num_inference_steps=count, beta_start=start, beta_end=end, final_step="midpoint")
    return SOCDDIMScheduler.for_recipe(model, schedule)
