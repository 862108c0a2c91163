"""A LoRA file is W + alpha / rank x B A in the layers that it means, in the words of whatever tool wrote it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from amsd.diffusion.families import family_class, family_for
from amsd.diffusion.families.ldm_names import ldm_names
from amsd.diffusion.lora_forms import read_lora
from amsd.diffusion.lora_input import lora_file, merge
from amsd.errors import UsageError
from tests import pipelines

PIPELINES: dict[str, Callable[[], Any]] = {
    "sd": pipelines.stable_diffusion, "sdxl": pipelines.stable_diffusion_xl, "sd3": pipelines.stable_diffusion_3
}  # fmt: skip
Factors = dict[str, tuple[Tensor, Tensor, float]]
"""Layer -> down, up and alpha."""


def factors(network: nn.Module, ends: tuple[str, ...], rank: int = 2, alpha: float = 1.0) -> Factors:
    torch.manual_seed(7)
    found: Factors = {}
    for name, layer in network.named_modules():
        if not name.endswith(ends) or ".lora_" in name:
            continue
        if isinstance(layer, nn.Linear):
            found[name] = torch.randn(rank, layer.in_features), torch.randn(layer.out_features, rank), alpha
        elif isinstance(layer, nn.Conv2d):
            down = torch.randn(rank, layer.in_channels, *layer.kernel_size)
            found[name] = down, torch.randn(layer.out_channels, rank, 1, 1), alpha
    return found


def difference(down: Tensor, up: Tensor, alpha: float) -> Tensor:
    return alpha / len(down) * torch.einsum("or,ri...->oi...", up.flatten(1), down)


def ldm(unet: Any, name: str) -> str:
    table = ldm_names(unet)
    container = next(container for container in table if f"{name}.".startswith(f"{container}."))
    return table[container] + name.removeprefix(container)


def kohya(found: Factors, prefix: str, name: Callable[[str], str] = str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for layer, (down, up, alpha) in found.items():
        stem = prefix + name(layer).replace(".", "_")
        tensors |= {
            f"{stem}.lora_down.weight": down,
            f"{stem}.lora_up.weight": up,
            f"{stem}.alpha": torch.tensor(alpha),
        }
    return tensors


def dotted(found: Factors, prefix: str, down: str, up: str, name: Callable[[str], str] = str) -> dict[str, Tensor]:
    """With an alpha beside each pair."""
    tensors: dict[str, Tensor] = {}
    for layer, (first, second, alpha) in found.items():
        stem = f"{prefix}{name(layer)}"
        tensors |= {f"{stem}{down}": first, f"{stem}{up}": second, f"{stem}.alpha": torch.tensor(alpha)}
    return tensors


def processors(layer: str) -> str:
    path, _, last = layer.removesuffix(".0").rpartition(".")
    return f"{path}.processor.{last}_lora"


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
UNET_WORDS: dict[str, tuple[tuple[str, ...], Callable[[Any, Factors], dict[str, Tensor]]]] = {
    "kohya": ((*ATTENTION, "proj_in", "ff.net.0.proj"), lambda net, f: kohya(f, "lora_unet_")),
    "kohya, convolutions": (("conv1", "conv_shortcut", "conv_in", "samplers.0.conv", "time_emb_proj", "linear_1"),
                            lambda net, f: kohya(f, "lora_unet_")),
    "kohya, LDM": ((*ATTENTION, "proj_out", "ff.net.2"), lambda net, f: kohya(f, "lora_unet_", lambda n: ldm(net, n))),
    "kohya, LDM, convolutions": (("conv1", "conv_shortcut", "samplers.0.conv", "conv_out", "linear_2"),
                                 lambda net, f: kohya(f, "lora_unet_", lambda n: ldm(net, n))),
    "lycoris": (ATTENTION, lambda net, f: kohya(f, "lycoris_")),
    "comfy": (ATTENTION, lambda net, f: dotted(
        f, "diffusion_model.", ".lora_down.weight", ".lora_up.weight", lambda n: ldm(net, n))),
    "diffusers": (ATTENTION, lambda net, f: dotted(f, "unet.", ".lora.down.weight", ".lora.up.weight")),
    "peft": (ATTENTION, lambda net, f: dotted(f, "unet.", ".lora_A.weight", ".lora_B.weight")),
    "peft, named": (ATTENTION, lambda net, f: dotted(f, "unet.", ".lora_A.default.weight", ".lora_B.default.weight")),
    "no prefix": (ATTENTION, lambda net, f: dotted(f, "", ".lora_A.weight", ".lora_B.weight")),
}  # fmt: skip


def saved(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "lora.safetensors")
    return folder / "lora.safetensors"


def require_merged(network: Any, before: Mapping[str, Tensor], found: Factors) -> None:
    after = network.state_dict()
    assert after.keys() == before.keys()
    for name, value in after.items():
        layer = found.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        expected = before[name] if layer is None else before[name] + difference(*layer)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("words", UNET_WORDS)
@pytest.mark.parametrize("base", ["sd", "sdxl"])
def test_every_tool_s_names_change_the_same_layers(base: str, words: str, tmp_path: Path) -> None:
    pipeline = PIPELINES[base]()
    ends, spelled = UNET_WORDS[words]
    found, before = factors(pipeline.unet, ends), state(pipeline.unet)
    merge(family_for(pipeline), saved(tmp_path, spelled(pipeline.unet, found)), "x")
    assert len(found) > 3
    require_merged(pipeline.unet, before, found)


LDM: dict[str, dict[str, str]] = {
    "StableDiffusionPipeline": {
        "down_blocks.0.attentions.0": "input_blocks.1.1",
        "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
        "down_blocks.2.attentions.1": "input_blocks.8.1",
        "mid_block.resnets.1.conv1": "middle_block.2.in_layers.2",
        "mid_block.attentions.0": "middle_block.1",
        "up_blocks.1.attentions.2": "output_blocks.5.1",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.2.1.conv",
        "conv_out": "out.2",
        "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv",
        "time_embedding.linear_2": "time_embed.2",
    },
    "StableDiffusionXLPipeline": {
        "down_blocks.1.attentions.0": "input_blocks.4.1",
        "down_blocks.2.attentions.1": "input_blocks.8.1",
        "up_blocks.0.attentions.2": "output_blocks.2.1",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.2.2.conv",
        "up_blocks.2.resnets.2.conv_shortcut": "output_blocks.8.0.skip_connection",
        "add_embedding.linear_1": "label_emb.0.0",
    },
}
"""Names in published checkpoints."""


@pytest.mark.parametrize("name", LDM)
def test_names_of_the_original_layout_are_those_of_published_models(name: str) -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(family_class(name).published[0].denoiser))
    table = ldm_names(unet)
    assert {own: table[own] for own in LDM[name]} == LDM[name]
    assert len(set(table.values())) == len(table)


def test_names_of_attention_processors(tmp_path: Path) -> None:
    pipeline = PIPELINES["sd"]()
    found, before = factors(pipeline.unet, ATTENTION, alpha=2.0), state(pipeline.unet)
    tensors = dotted(found, "unet.", ".down.weight", ".up.weight", processors)
    merge(family_for(pipeline), saved(tmp_path, {k: v for k, v in tensors.items() if "alpha" not in k}), "x")
    require_merged(pipeline.unet, before, found)


def test_layers_differ_in_rank_and_alpha(tmp_path: Path) -> None:
    for base in ("sd", "sd3"):
        pipeline = PIPELINES[base]()
        family = family_for(pipeline)
        found = factors(family.denoiser, ("to_q",), 1, 1.0) | factors(family.denoiser, ("to_k", "to_v"), 3, 2.0)
        before = state(family.denoiser)
        file = saved(tmp_path, dotted(found, f"{family.denoiser_name}.", ".lora_A.weight", ".lora_B.weight"))
        assert read_lora(family, file, "x").strengths() == ({1, 3}, {1.0, 2.0})
        merge(family, file, "x")
        require_merged(family.denoiser, before, found)


@pytest.mark.parametrize(("base", "prefixes"), [
    ("sd", {"text_encoder": "lora_te_text_model_"}),
    ("sdxl", {"text_encoder": "lora_te1_text_model_", "text_encoder_2": "lora_te2_text_model_"}),
])  # fmt: skip
def test_text_encoders_in_kohya_s_words(
    base: str, prefixes: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # transformers 5.24 came before the PEFT that it asks for: a merge needs no more than what is installed.
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "999")
    pipeline = PIPELINES[base]()
    found = {name: factors(pipeline.components[name], ("q_proj", "v_proj", "fc1")) for name in prefixes}
    before = {name: state(pipeline.components[name]) for name in prefixes}
    unet, unchanged = factors(pipeline.unet, ATTENTION), state(pipeline.unet)
    tensors = kohya(unet, "lora_unet_")
    for name, prefix in prefixes.items():
        tensors |= kohya({layer.removeprefix("text_model."): each for layer, each in found[name].items()}, prefix)
    file = saved(tmp_path, tensors)
    assert read_lora(family_for(PIPELINES[base]()), file, "x").changes_text(family_for(pipeline))
    merge(family_for(pipeline), file, "x")
    require_merged(pipeline.unet, unchanged, unet)
    for name in prefixes:
        require_merged(pipeline.components[name], before[name], found[name])


def broken() -> Iterator[tuple[str, Callable[[dict[str, Tensor]], dict[str, Tensor]], str]]:
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    extra = {
        "lora_unet_nowhere.lora_down.weight": torch.zeros(2, 8),
        "lora_unet_nowhere.lora_up.weight": torch.zeros(8, 2),
    }
    yield "a layer more", lambda t: t | extra, "of which 2 have no place.*lora_unet_nowhere"
    yield (
        "no up",
        lambda t: {k: v for k, v in t.items() if k != f"{stem}.lora_up.weight"},
        "attn1.to_q has no matrix lora_up",
    )
    yield "a rank less", lambda t: t | {f"{stem}.lora_up.weight": torch.zeros(16, 1)}, "which do not fit the layer"
    yield "another width", lambda t: t | {f"{stem}.lora_down.weight": torch.zeros(2, 9)}, "which do not fit the layer"
    yield "no alpha", lambda t: t | {f"{stem}.alpha": torch.tensor(torch.nan)}, rf"{stem}\.alpha are not finite"
    yield "infinite", lambda t: t | {f"{stem}.lora_up.weight": torch.full((16, 2), torch.inf)}, "are not finite"
    yield "in the middle", lambda t: t | {f"{stem}.lora_mid.weight": torch.zeros(2, 2, 3, 3)}, "is a LyCORIS adapter"


@pytest.mark.parametrize(("change", "words"), [pytest.param(*each[1:], id=each[0]) for each in broken()])
def test_what_would_be_left_out_is_refused(change: Any, words: str, tmp_path: Path) -> None:
    pipeline = PIPELINES["sd"]()
    file = saved(tmp_path, change(kohya(factors(pipeline.unet, ATTENTION), "lora_unet_")))
    with pytest.raises(UsageError, match=words):
        read_lora(family_for(pipeline), lora_file(file) or file, "x")


def test_a_suffix_in_capitals(tmp_path: Path) -> None:
    file = saved(tmp_path, kohya(factors(PIPELINES["sd"]().unet, ATTENTION), "lora_unet_"))
    file = file.rename(tmp_path / "LORA.SAFETENSORS")
    assert lora_file(file) == file
