"""LoRA files as other tools read them: the update is the trained one, at any alpha and for every kind of layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from diffusers.utils.state_dict_utils import convert_all_state_dict_to_peft, convert_state_dict_to_kohya
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from amsd.diffusion.families import family_for
from amsd.diffusion.families.kohya import base_version, write_kohya
from amsd.diffusion.loading import load_family
from amsd.diffusion.lora_file import write_diffusers, write_safetensors
from amsd.diffusion.lora_input import lora_file, merge
from amsd.diffusion.parameterizations import ADAPTER_FILE, build_policy
from amsd.errors import UsageError
from amsd.recipe import Model
from tests import pipelines

#: Every kind of layer that LoRAs of the field are trained on.
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")


def trained(pipeline: Any, folder: Path, **lora: Any) -> Path:
    """The adapter file of a LoRA with random weights."""
    pipeline.save_pretrained(folder / "base")
    model = Model.model_validate({"pretrained": str(folder / "base"), "parameterization": "lora", "lora": lora})
    policy = build_policy(load_family(model), model)
    random = torch.Generator().manual_seed(1)
    for parameter in policy.trainable.values():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=random)
    policy.save(folder)
    return folder / ADAPTER_FILE


def picture(pipeline: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    arguments = {"num_inference_steps": 3, "guidance_scale": 3.0, "generator": generator, "output_type": "latent"}
    latents: torch.Tensor = pipeline("a red circle", **arguments).images
    return latents


@pytest.fixture(params=["stable_diffusion", "stable_diffusion_xl"])
def make(request: pytest.FixtureRequest) -> Callable[[], Any]:
    chosen: Callable[[], Any] = getattr(pipelines, request.param)
    return chosen


def test_every_way_through_diffusers_draws_the_same_picture(make: Callable[[], Any], tmp_path: Path) -> None:
    source = trained(make(), tmp_path, rank=4, alpha=16.0, targets=TARGETS)
    pipeline = make()
    base = picture(pipeline)
    pipeline.load_lora_weights(tmp_path, weight_name=ADAPTER_FILE)
    expected = picture(pipeline)
    assert (expected - base).abs().max() > 0.1
    write_diffusers(source, tmp_path / "diffusers.safetensors")
    write_kohya(source, tmp_path / "kohya.safetensors")
    # Diffusers' own converters know nothing of metadata: they see the tensors only.
    folded = load_file(tmp_path / "diffusers.safetensors")
    save_file(convert_state_dict_to_kohya(dict(folded)), tmp_path / "converted.safetensors")
    save_file(convert_all_state_dict_to_peft(dict(folded)), tmp_path / "peft.safetensors")
    for name in ("diffusers", "kohya", "converted", "peft"):
        plain = make()
        plain.load_lora_weights(tmp_path, weight_name=f"{name}.safetensors")
        assert torch.allclose(picture(plain), expected, atol=2e-4), name


def test_kohya_s_names_and_alpha(tmp_path: Path) -> None:
    source = trained(pipelines.stable_diffusion(), tmp_path, rank=4, alpha=16.0)
    write_kohya(source, tmp_path / "kohya.safetensors", "sd_v1")
    tensors = load_file(tmp_path / "kohya.safetensors")
    module = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
    assert float(tensors[f"{module}.alpha"]) == 16.0
    assert tensors[f"{module}.lora_down.weight"].shape[0] == tensors[f"{module}.lora_up.weight"].shape[1] == 4
    assert {name.rpartition(".")[2] for name in tensors} == {"alpha", "weight"}
    with safe_open(tmp_path / "kohya.safetensors", framework="pt") as stream:
        assert stream.metadata() == {
            "format": "pt", "ss_network_module": "networks.lora", "ss_network_dim": "4", "ss_network_alpha": "16.0",
            "ss_base_model_version": "sd_v1",
        }  # fmt: skip


def test_files_say_their_format_and_equal_weights_are_equal_bytes(tmp_path: Path) -> None:
    source = trained(pipelines.stable_diffusion(), tmp_path, rank=2, alpha=8.0)
    write_diffusers(source, tmp_path / "diffusers.safetensors")
    for file in (source, tmp_path / "diffusers.safetensors"):
        with safe_open(file, framework="pt") as stream:
            assert stream.metadata()["format"] == "pt"
    tensors, metadata = load_file(source), {str(key): "x" * key for key in range(9)}
    for name in ("a", "b"):
        write_safetensors(tmp_path / name, tensors, metadata)
        metadata = dict(reversed(metadata.items()))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    for key, value in load_file(tmp_path / "a").items():
        assert torch.equal(value, tensors[key])


def test_the_base_model_has_kohya_s_name() -> None:
    assert base_version({"cross_attention_dim": 768}) == "sd_v1"
    assert base_version({"cross_attention_dim": 2048}) == "sdxl_base_v1-0"
    assert base_version({"cross_attention_dim": 16}) == ""


WIDTH = 32


def _matrices(*shapes: tuple[int, int]) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(2)
    return [torch.randn(shape, generator=random) for shape in shapes]


def _xlabs(down: torch.Tensor, up: torch.Tensor) -> dict[str, torch.Tensor]:
    name = "double_blocks.0.processor.qkv_lora1"
    return {f"{name}.down.weight": down, f"{name}.up.weight": up}


def _kohya(down: torch.Tensor, up: torch.Tensor) -> dict[str, torch.Tensor]:
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": 2 * up}
    return tensors | {f"{name}.alpha": torch.tensor(2.0)}  # half of the rank


def _comfy(down: torch.Tensor, up: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        key.replace("lora_unet_double_blocks_0_img_attn_qkv", "diffusion_model.double_blocks.0.img_attn.qkv"): value
        for key, value in _kohya(down, up).items()
    }


@pytest.mark.parametrize("tool", [_xlabs, _kohya, _comfy])
def test_flux_gets_what_the_files_of_other_tools_say(tool: Callable[..., Any], tmp_path: Path) -> None:
    """They hold one matrix for queries, keys and values, where diffusers has three layers."""
    down, up = _matrices((4, WIDTH), (3 * WIDTH, 4))
    save_file(tool(down, up), tmp_path / "lora.safetensors", metadata={"format": "pt"})
    family = family_for(pipelines.flux(), Model(max_sequence_length=6, size=(16, 16)))
    attention = family.denoiser.transformer_blocks[0].attn
    layers = [attention.to_q, attention.to_k, attention.to_v]
    before = [layer.weight.detach().clone() for layer in layers]
    assert lora_file(tmp_path / "lora.safetensors") is not None
    merge(family, tmp_path / "lora.safetensors", "the LoRA")
    attention = family.denoiser.transformer_blocks[0].attn
    layers = [attention.to_q, attention.to_k, attention.to_v]
    for old, layer, part in zip(before, layers, up.chunk(3), strict=True):
        torch.testing.assert_close(layer.weight, old + part @ down, rtol=1e-4, atol=1e-4)


class Zeros(dict[str, torch.Tensor]):
    """A checkpoint in the original layout, whose other tensors are zero."""

    def pop(self, key: str, *default: Any) -> Any:
        return super().pop(key, torch.zeros(3 * WIDTH, 1))


def _original(layers: Sequence[tuple[str, int, int]], prefix: str, dots: bool) -> tuple[Any, dict[str, torch.Tensor]]:
    """A LoRA file of layers (name, inputs, outputs), and what it adds to each, by its name."""
    tensors, added = {}, {}
    for name, inputs, outputs in layers:
        down, up = _matrices((4, inputs), (outputs, 4))
        stem = prefix + (name if dots else name.replace(".", "_"))
        tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(2.0)}
        added[f"{name}.weight"] = 0.5 * up @ down
    return tensors, added


SD3_LAYERS = [
    ("joint_blocks.0.x_block.attn.qkv", 16, 48), ("joint_blocks.0.x_block.attn2.qkv", 16, 48),
    ("joint_blocks.0.x_block.attn2.proj", 16, 16), ("joint_blocks.1.context_block.attn.qkv", 16, 48),
    ("joint_blocks.0.context_block.attn.proj", 16, 16), ("joint_blocks.1.x_block.mlp.fc1", 16, 64),
    ("joint_blocks.0.context_block.mlp.fc2", 64, 16), ("joint_blocks.0.x_block.adaLN_modulation.1", 16, 144),
    ("joint_blocks.0.context_block.adaLN_modulation.1", 16, 96), ("y_embedder.mlp.2", 16, 16),
    ("context_embedder", 32, 16), ("final_layer.linear", 16, 64),
]  # fmt: skip


@pytest.mark.parametrize(("prefix", "dots"), [("lora_unet_", False), ("diffusion_model.", True)])
def test_stable_diffusion_3_in_the_original_layout_is_what_diffusers_makes_of_it(
    prefix: str, dots: bool, tmp_path: Path
) -> None:
    """Of kohya's tools and ComfyUI; diffusers converts whole models in this layout, but no LoRA."""
    tensors, added = _original(SD3_LAYERS, prefix, dots)
    save_file(tensors, tmp_path / "lora.safetensors", metadata={"format": "pt"})
    family = family_for(pipelines.stable_diffusion_3(t5=False))
    before = {name: value.clone() for name, value in family.denoiser.state_dict().items()}
    norms = ("0.x_block.attn.ln_q", "1.x_block.attn.ln_q", "0.x_block.attn2.ln_k")  # they say how many blocks there are
    marks = {f"joint_blocks.{name}.weight": torch.zeros(1) for name in norms}
    expected = convert_sd3_transformer_checkpoint_to_diffusers(Zeros(marks | added))
    merge(family, tmp_path / "lora.safetensors", "the LoRA")
    moved = {
        name: value - before[name] for name, value in family.denoiser.state_dict().items()
        if not torch.equal(value, before[name])
    }  # fmt: skip
    assert len(moved) == 18
    for name, value in moved.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4)


def test_a_single_block_of_flux_is_split_at_its_own_widths(tmp_path: Path) -> None:
    name, (down, up) = "lora_unet_single_blocks_0_linear1", _matrices((4, WIDTH), (7 * WIDTH, 4))
    file = tmp_path / "lora.safetensors"
    save_file({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}, file, metadata={"format": "pt"})
    family = family_for(pipelines.flux(), Model(max_sequence_length=6, size=(16, 16)))
    block = family.denoiser.single_transformer_blocks[0]
    layers = [block.attn.to_q, block.attn.to_k, block.attn.to_v, block.proj_mlp]
    before = torch.cat([layer.weight.detach().clone() for layer in layers])
    merge(family, file, "the LoRA")
    block = family.denoiser.single_transformer_blocks[0]
    after = torch.cat([layer.weight for layer in (block.attn.to_q, block.attn.to_k, block.attn.to_v, block.proj_mlp)])
    torch.testing.assert_close(after, before + up @ down, rtol=1e-4, atol=1e-4)
    save_file({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up[:-1]}, file, metadata={"format": "pt"})
    with pytest.raises(UsageError, match="do not fit the layer"):
        merge(family, file, "the LoRA")


def test_layers_that_neither_amsd_nor_diffusers_can_place_are_refused_with_the_reason(tmp_path: Path) -> None:
    """The modulation before FLUX's output has its halves in another order there: diffusers' converter is asked."""
    name, (down, up) = "lora_unet_single_blocks_0_linear1", _matrices((4, WIDTH), (7 * WIDTH, 4))
    other, pair = "lora_unet_final_layer_adaLN_modulation_1", _matrices((4, WIDTH), (2 * WIDTH, 4))
    file = tmp_path / "lora.safetensors"
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    tensors |= {f"{other}.lora_down.weight": pair[0], f"{other}.lora_up.weight": pair[1]}
    save_file(tensors, file, metadata={"format": "pt"})
    family = family_for(pipelines.flux(), Model(max_sequence_length=6, size=(16, 16)))
    with pytest.raises(UsageError) as refusal:
        merge(family, file, "the LoRA")
    for part in (
        f"the LoRA: {file} holds 4 tensors",
        other,
        'AssertionError: at "assert sum(dims)',
        "widths of the publ",
    ):
        assert part in str(refusal.value)
