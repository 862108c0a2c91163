"""LoRA files and single files of every family are models beside a base, not only those of Stable Diffusion 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from amsd.errors import UsageError
from amsd.experiment.models import load_model
from amsd.recipe import Model
from tests import ldm, pipelines

RANK, ALPHA = 4, 8.0
FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "sdxl": (pipelines.stable_diffusion_xl, {}),
    "sd3": (pipelines.stable_diffusion_3, {"max_sequence_length": 16}),
    "flux": (pipelines.flux, {"size": (16, 16), "max_sequence_length": 16}),
}


def save_lora(pipeline: Any, folder: Path, tool: str) -> dict[str, torch.Tensor]:
    """A LoRA of the denoiser as diffusers or PEFT saves it; returns what it adds to each weight."""
    name = "unet" if hasattr(pipeline, "unet") else "transformer"
    network = getattr(pipeline, name)
    torch.manual_seed(3)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["to_q", "to_v"], init_lora_weights=False)
    network.add_adapter(config)
    layers = get_peft_model_state_dict(network)
    if tool == "diffusers":
        pipeline.save_lora_weights(
            folder, **{f"{name}_lora_layers": layers, f"{name}_lora_adapter_metadata": config.to_dict()}
        )
    else:
        config.save_pretrained(str(folder))
        named = {f"base_model.model.{key}": value for key, value in layers.items()}
        save_file(named, folder / "adapter_model.safetensors")
    downs = {key.removesuffix(".lora_A.weight"): value for key, value in layers.items() if "lora_A" in key}
    return {
        f"{key}.weight": ALPHA / RANK * layers[f"{key}.lora_B.weight"] @ down for key, down in downs.items()
    }  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("tool", ["diffusers", "peft"])
def test_a_lora_is_added_with_its_strength(name: str, tool: str, tmp_path: Path) -> None:
    build, choices = FAMILIES[name]
    build().save_pretrained(tmp_path / "model")
    model = Model(pretrained=str(tmp_path / "model"), **choices)
    added = save_lora(build(), tmp_path / "lora", tool)
    base, tuned = (
        load_model(source, model, torch.device("cpu")) for source in (model.pretrained, str(tmp_path / "lora"))
    )
    before, after = (each.family.denoiser.state_dict() for each in (base, tuned))
    assert before.keys() == after.keys()
    assert len(added) >= 4
    for key, value in after.items():
        expected = before[key] + added[key] if key in added else before[key]
        assert torch.allclose(value, expected, atol=1e-5), key
    assert base.weights != tuned.weights
    pipelines.stable_diffusion().save_pretrained(tmp_path / "other")
    with pytest.raises(UsageError, match="belongs to another architecture"):
        load_model(str(tmp_path / "lora"), Model(pretrained=str(tmp_path / "other")), torch.device("cpu"))
    if tool == "peft":
        (tmp_path / "lora" / "adapter_config.json").unlink()
        with pytest.raises(UsageError, match=r"adapter_config\.json, which holds its alpha"):
            load_model(str(tmp_path / "lora"), model, torch.device("cpu"))


def test_a_single_file_of_sdxl_is_read_with_the_configuration_of_the_base(tmp_path: Path) -> None:
    pipeline = pipelines.stable_diffusion_xl(second_width=64, attention=True)
    pipeline.save_pretrained(tmp_path / "model")
    save_file(ldm.checkpoint(pipeline, "sdxl"), tmp_path / "xl.safetensors")
    model = Model(pretrained=str(tmp_path / "model"))
    folder, file = (
        load_model(source, model, torch.device("cpu"))
        for source in (model.pretrained, str(tmp_path / "xl.safetensors"))
    )
    own, read = folder.family.denoiser.state_dict(), file.family.denoiser.state_dict()
    assert own.keys() == read.keys()
    assert all(torch.equal(read[key], value) for key, value in own.items())
