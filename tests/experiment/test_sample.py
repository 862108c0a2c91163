"""Pictures on request, whatever the networks' precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from amsd.experiment.sample import SampleRequest, sample
from amsd.recipe import from_dict
from tests import pipelines

FAMILIES: dict[str, Callable[[], Any]] = {
    "sd15": pipelines.stable_diffusion, "sdxl": pipelines.stable_diffusion_xl, "sd3": pipelines.stable_diffusion_3,
    "sd3 without T5": lambda: pipelines.stable_diffusion_3(t5=False), "flux": pipelines.flux,
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision_draws_the_picture_of_single_precision(name: str, tmp_path: Path) -> None:
    """From the same noise: a call with text takes that of its encoders' dtype, and gives it to a decoder in float32."""
    FAMILIES[name]().save_pretrained(tmp_path / "model")

    def drawn(precision: str, seed: int) -> Any:
        model = {"pretrained": str(tmp_path / "model"), "precision": precision, "size": [16, 16]}
        reward = [{"name": "brightness"}]
        recipe = from_dict({"model": model, "reward": reward, "guidance": {"guidance_scale": 3.0}})
        request = SampleRequest(("a cat",), seed=seed, num_inference_steps=3)
        files = sample(recipe, None, request, tmp_path / f"{precision}-{seed}")
        return np.stack([np.asarray(Image.open(file)).astype(int) for file in files])

    exact, half, other = drawn("fp32", 0), drawn("bf16", 0), drawn("fp32", 1)
    assert abs(half - exact).mean() < 0.1 * abs(other - exact).mean()
