"""Training begins from what is fine-tuned already, and the base stays the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from amsd.diffusion.guidance import TextCondition
from amsd.diffusion.loading import load_family
from amsd.diffusion.lora_input import lora_file, merge
from amsd.diffusion.parameterizations import build_policy
from amsd.diffusion.policy import Policy
from amsd.diffusion.start_weights import require_start, start_from
from amsd.errors import UsageError
from amsd.recipe import Model
from tests import pipelines

RANK, ALPHA = 4, 2.0
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "base"
    pipelines.stable_diffusion().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base with another denoiser."""
    folder = tmp_path_factory.mktemp("start") / "other"
    pipeline = pipelines.stable_diffusion()
    pipeline.unet = pipelines.stable_diffusion(seed=1).unet
    pipeline.save_pretrained(folder)
    return folder


def made(folder: Path, text: bool = False, rank: int = RANK, alpha: float = ALPHA) -> Path:
    """A LoRA file as diffusers saves it, with weights that change something."""
    pipeline = pipelines.stable_diffusion()
    torch.manual_seed(5)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(TARGETS), init_lora_weights=False)
    pipeline.unet.add_adapter(config)
    layers: dict[str, Any] = {"unet_lora_layers": get_peft_model_state_dict(pipeline.unet),
                              "unet_lora_adapter_metadata": config.to_dict()}  # fmt: skip
    if text:
        own = LoraConfig(r=rank, lora_alpha=alpha, target_modules=["q_proj"], init_lora_weights=False)
        inject_adapter_in_model(own, pipeline.text_encoder)
        layers |= {"text_encoder_lora_layers": get_peft_model_state_dict(pipeline.text_encoder),
                   "text_encoder_lora_adapter_metadata": own.to_dict()}  # fmt: skip
    pipeline.save_lora_weights(folder, **layers)
    return folder / "pytorch_lora_weights.safetensors"


def kohya(file: Path, to: Path) -> Path:
    """The same file as kohya's trainer names it, with an alpha per module."""
    found = {}
    for name, value in load_file(file).items():
        module, _, factor = name.removeprefix("unet.").rpartition(".lora_")
        stem = "lora_unet_" + module.replace(".", "_")
        found[f"{stem}.lora_{'down' if factor.startswith('A') else 'up'}.weight"] = value.clone()
        found[f"{stem}.alpha"] = torch.tensor(ALPHA)
    save_file(found, to)
    return to


def policy(base: Path, parameterization: str, **lora: Any) -> tuple[Policy, Model]:
    model = Model(pretrained=str(base), parameterization=parameterization,  # type: ignore[arg-type]
                  lora={"rank": RANK, "alpha": ALPHA, "targets": TARGETS, **lora})  # type: ignore[arg-type]  # fmt: skip
    return build_policy(load_family(model), model), model


def begun(base: Path, parameterization: str, start: Path | str, **lora: Any) -> Policy:
    found, model = policy(base, parameterization, **lora)
    start_from(found, model.model_copy(update={"start": str(start)}))
    return found


@torch.no_grad()
def outputs(found: Policy) -> tuple[Tensor, Tensor]:
    """Fine-tuned and base prediction at one state."""
    torch.manual_seed(3)
    x, hidden = torch.randn(2, 4, 8, 8), torch.randn(2, 16, pipelines.WIDTH)
    timesteps, condition = torch.tensor([10, 500]), TextCondition(hidden)
    return found.finetuned(x, timesteps, condition), found.base(x, timesteps, condition)


@torch.no_grad()
def expected(network: Any) -> Tensor:
    torch.manual_seed(3)
    x, hidden = torch.randn(2, 4, 8, 8), torch.randn(2, 16, pipelines.WIDTH)
    value: Tensor = network(x, torch.tensor([10, 500]), hidden).sample
    return value


def with_lora(file: Path) -> Tensor:
    """What plain diffusers makes of the base and a LoRA file."""
    pipeline = pipelines.stable_diffusion()
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    return expected(pipeline.unet)


@pytest.mark.parametrize("parameterization", ["full", "lora"])
@pytest.mark.parametrize("tool", ["diffusers", "kohya"])
def test_a_lora_file_is_where_training_begins(base: Path, tmp_path: Path, parameterization: str, tool: str) -> None:
    file = made(tmp_path)
    file = file if tool == "diffusers" else kohya(file, tmp_path / "kohya.safetensors")
    found = begun(base, parameterization, file)
    tuned, unchanged = outputs(found)
    own = expected(pipelines.stable_diffusion().unet)
    torch.testing.assert_close(tuned, with_lora(made(tmp_path / "again")), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(unchanged, own, rtol=1e-5, atol=1e-6)
    assert (tuned - unchanged).abs().max() > 1e-2
    assert all(value.requires_grad and value.dtype == torch.float32 for value in found.trainable.values())


def test_a_started_adapter_trains_saves_and_loads_as_any_other(base: Path, tmp_path: Path) -> None:
    found = begun(base, "lora", made(tmp_path))
    torch.manual_seed(3)
    out = found.finetuned(torch.randn(2, 4, 8, 8), torch.tensor([10, 500]), TextCondition(torch.randn(2, 16, 16)))
    out.square().mean().backward()
    assert all(value.grad is not None for value in found.trainable.values())
    found.save(tmp_path / "saved")
    fresh, _ = policy(base, "lora")
    fresh.load(tmp_path / "saved")
    torch.testing.assert_close(outputs(fresh)[0], outputs(found)[0])


def test_a_full_network_begins_from_another_pipeline(base: Path, other: Path) -> None:
    tuned, unchanged = outputs(begun(base, "full", other))
    torch.testing.assert_close(tuned, expected(pipelines.stable_diffusion(seed=1).unet))
    torch.testing.assert_close(unchanged, expected(pipelines.stable_diffusion().unet))


def test_another_text_encoder_of_the_start_is_said(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipelines.stable_diffusion(seed=1).save_pretrained(tmp_path / "model")
    begun(base, "full", tmp_path / "model")
    assert "its text_encoder differs from the base model's" in caplog.text


REFUSED = {
    "another rank": ("lora", {"rank": 8, "alpha": ALPHA}, "Set model.lora.rank = 4 and model.lora.alpha = 2"),
    "another alpha": ("lora", {"rank": RANK, "alpha": 4.0}, "has rank 4 and alpha 2"),
    "other layers": ("lora", {"targets": ("to_q",)}, "model.lora.targets"),
    "offset": ("offset", {}, "a checkpoint of an offset"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_with_the_way_out(base: Path, tmp_path: Path, case: str) -> None:
    parameterization, lora, text = REFUSED[case]
    with pytest.raises(UsageError, match=text):
        begun(base, parameterization, made(tmp_path), **lora)


@pytest.mark.parametrize("parameterization", ["full", "lora"])
def test_a_lora_of_the_text_encoder_is_refused(base: Path, tmp_path: Path, parameterization: str) -> None:
    with pytest.raises(UsageError, match="changes the text encoder too"):
        begun(base, parameterization, made(tmp_path, text=True))


def test_a_lora_of_another_architecture_is_refused(base: Path, tmp_path: Path) -> None:
    file = made(tmp_path)
    save_file({name.replace("down_blocks.0", "down_blocks.7"): value for name, value in load_file(file).items()}, file)
    with pytest.raises(UsageError, match="belongs to another architecture"):
        begun(base, "full", file)


def test_a_pipeline_cannot_start_a_lora_and_a_missing_path_is_named(base: Path, other: Path) -> None:
    with pytest.raises(UsageError, match=r"set model\.pretrained to it"):
        begun(base, "lora", other)
    with pytest.raises(UsageError, match=r"model\.start = './none'"):
        require_start(Model(pretrained=str(base), start="./none"))
    require_start(Model(pretrained=str(base), start=str(other)))
    require_start(Model(pretrained=str(base)))


def test_a_merged_file_changes_text_encoder_and_denoiser_as_diffusers_does(base: Path, tmp_path: Path) -> None:
    file = made(tmp_path, text=True)
    assert lora_file(tmp_path) == file
    assert lora_file(base) is None
    family = load_family(Model(pretrained=str(base)))
    merge(family, file, "the model")
    plain = pipelines.stable_diffusion()
    plain.load_lora_weights(str(tmp_path), weight_name=file.name)  # diffusers 0.38 offline guesses no name
    torch.testing.assert_close(expected(family.denoiser), expected(plain.unet), rtol=1e-4, atol=1e-5)
    tokens = torch.tensor([[1, 2, 3]])
    mine, theirs = (each.text_encoder(tokens)[0] for each in (family.pipeline, plain))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert (mine - pipelines.stable_diffusion().text_encoder(tokens)[0]).abs().max() > 1e-3
