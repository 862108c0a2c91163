"""Pictures on request, whatever the networks' precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from amsd.experiment.export import export
from amsd.experiment.sample import SampleRequest, sample
from amsd.experiment.setup import load_policy
from amsd.recipe import Recipe, dump_toml, from_dict
from tests import pipelines

MOVED = 2.0**-14
"""Less than bfloat16 can tell from a weight of .1."""
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


def files_of_half_precision(folder: Path, name: str, parameterization: str) -> tuple[Recipe, Any]:
    """A checkpoint in `folder` whose weights moved by less than bfloat16 can tell, and the base it moved from."""
    original = FAMILIES[name]()
    original.save_pretrained(folder / "model")
    model = {
        "pretrained": str(folder / "model"), "precision": "bf16", "size": [16, 16], "parameterization": parameterization
    }  # fmt: skip
    recipe = from_dict({"model": model, "reward": [{"name": "brightness"}], "guidance": {"guidance_scale": 3.0}})
    policy = load_policy(recipe, torch.device("cpu"))
    for value in policy.trainable.values():
        value.data.add_(MOVED)
    (folder / "step-000001").mkdir()
    policy.save(folder / "step-000001")
    for file, text in (("manifest.json", "{}"), ("recipe.toml", dump_toml(recipe))):
        (folder / "step-000001" / file).write_text(text, encoding="utf-8")
    return recipe, original


@pytest.mark.parametrize(("name", "parameterization"), [("sd15", "lora"), ("sd3", "full"), ("flux", "lora")])
def test_an_export_of_half_precision_is_drawn_by_the_lines_of_its_card(
    name: str, parameterization: str, tmp_path: Path
) -> None:
    """And without a dtype: text encoders come in that of their files, diffusers' networks in float32."""
    recipe, original = files_of_half_precision(tmp_path, name, parameterization)
    exported = export(recipe, tmp_path / "step-000001", tmp_path / "export")
    plain = DiffusionPipeline.from_pretrained(exported)
    networks = {key: part for key, part in plain.components.items() if isinstance(part, torch.nn.Module)}
    assert {value.dtype for part in networks.values() for value in part.parameters()} == {torch.float32}
    for key, part in networks.items():  # nothing is rounded
        before = dict(getattr(original, key).named_parameters())
        moved = MOVED if key == "transformer" and parameterization == "full" else 0.0
        for layer, value in part.named_parameters():
            if parameterization == "full" or "attn" not in layer:
                torch.testing.assert_close(value, before[layer] + moved, rtol=0, atol=1e-6, msg=f"{key}.{layer}")
    code = (exported / "README.md").read_text(encoding="utf-8").split("```python")[1].split("```")[0]
    found: dict[str, Any] = {}
    exec(
        code.replace("THIS_FOLDER_OR_REPOSITORY", str(exported)).replace(
            "num_inference_steps=50", "num_inference_steps=2"
        ),
        found,
    )
    assert found["pipeline"].dtype is torch.bfloat16
    assert found["image"].size == (16, 16)
