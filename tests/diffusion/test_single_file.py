"""Checkpoints of one file in the original layout: the same networks, offline, without running what a pickle says."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from amsd.diffusion.loading import load_family, locate_configuration
from amsd.errors import UsageError
from amsd.experiment.plan import make_plan
from amsd.recipe import Model, from_dict
from tests import ldm, pipelines

FAMILIES: dict[str, Callable[[int], Any]] = {
    "sd1": lambda seed: pipelines.stable_diffusion(seed, attention=True),
    "sd2": lambda seed: pipelines.stable_diffusion(seed, "v_prediction", attention=True),
    "sdxl": lambda seed: pipelines.stable_diffusion_xl(seed, second_width=24, attention=True),
}
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def written(folder: Path, family: str = "sd1", seed: int = 1, **change: Any) -> Model:
    """A checkpoint, and a configuration folder whose own weights are others."""
    save_file({**ldm.checkpoint(FAMILIES[family](seed), family), **change}, folder / "model.safetensors")
    FAMILIES[family](seed + 1).save_pretrained(folder / "config")
    return Model(pretrained=str(folder / "model.safetensors"), config=str(folder / "config"))


def drawn(pipeline: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    images: torch.Tensor = pipeline(
        "a red circle", num_inference_steps=3, guidance_scale=3.0, generator=generator, output_type="pt"
    ).images
    return images


@pytest.mark.parametrize("family", FAMILIES)
def test_the_networks_are_those_of_the_original_pipeline(family: str, tmp_path: Path) -> None:
    original = FAMILIES[family](1)
    loaded = load_family(written(tmp_path, family)).pipeline
    assert type(loaded) is type(original)
    for name, part in original.components.items():
        if isinstance(part, nn.Module):
            state = getattr(loaded, name).state_dict()
            assert state.keys() == part.state_dict().keys()
            assert all(torch.equal(state[key], value) for key, value in part.state_dict().items())
    assert loaded.scheduler.config.prediction_type == original.scheduler.config.prediction_type
    assert torch.equal(drawn(loaded), drawn(original))
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(loaded.vae.encode(image).latent_dist.mean, original.vae.encode(image).latent_dist.mean)


def test_a_suffix_in_capitals(tmp_path: Path) -> None:
    model = written(tmp_path)
    file = Path(model.pretrained).rename(tmp_path / "MODEL.SAFETENSORS")
    loaded = load_family(model.model_copy(update={"pretrained": str(file)}))
    assert torch.equal(loaded.denoiser.conv_in.weight, FAMILIES["sd1"](1).unet.conv_in.weight)


def test_half_precision_files_are_loaded_in_float32(tmp_path: Path) -> None:
    model = written(tmp_path)
    halves = {key: value.half() for key, value in load_file(model.pretrained).items()}
    save_file(halves, model.pretrained)
    network = load_family(model).pipeline.unet
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    bias = halves["model.diffusion_model.out.2.bias"]
    assert torch.equal(network.conv_out.bias, bias.float())


def test_a_ckpt_of_tensors_is_read(tmp_path: Path) -> None:
    model = written(tmp_path)
    file = tmp_path / "model.ckpt"
    torch.save({"state_dict": load_file(model.pretrained), "global_step": 470000}, file)
    loaded = load_family(model.model_copy(update={"pretrained": str(file)})).pipeline
    assert torch.equal(drawn(loaded), drawn(FAMILIES["sd1"](1)))


class Attack:
    """Unpickling it creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_a_ckpt_with_code_is_refused_and_its_code_is_not_run(tmp_path: Path) -> None:
    model = written(tmp_path)
    file, touched = tmp_path / "model.ckpt", tmp_path / "touched"
    torch.save({"state_dict": load_file(model.pretrained), "callbacks": Attack(touched)}, file)
    for config in (model.config, None):
        with pytest.raises(UsageError, match=r"a \.ckpt is a pickle.*Use the \.safetensors file"):
            load_family(Model(pretrained=str(file), config=config))
    assert not touched.exists()


@pytest.mark.parametrize("configured", [True, False])
@pytest.mark.parametrize(
    "content",
    [
        *(f"{first}ello, this is a note about the model.\n".encode() for first in "bcghijklnprstuCIJKLMPRSTUVX("),
        b"",
        b"\x80\x02garbage",
        ["a", "list"],
        {"state_dict": ["a", "list"]},
        {"state_dict": {"step": 1}},
        {1: torch.zeros(2)},
        torch.zeros(2),
    ],
    ids=lambda content: repr(content)[:24],
)
def test_a_ckpt_that_is_no_checkpoint_is_refused(
    content: Any, configured: bool, configuration: Path, tmp_path: Path
) -> None:
    file = tmp_path / "model.ckpt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(UsageError, match=r"model\.ckpt' cannot be read as a checkpoint: "):
        load_family(Model(pretrained=str(file), config=str(configuration) if configured else None))


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("configuration")
    pipelines.stable_diffusion(attention=True).save_pretrained(folder)
    return folder


def test_offline_without_configuration_says_what_to_set(tmp_path: Path) -> None:
    model = written(tmp_path).model_copy(update={"config": None})
    with pytest.raises(UsageError) as caught:
        load_family(model)
    for words in (f"= '{SD15}' is not in the local cache", "HF_HUB_OFFLINE", "set model.config", f"hf download {SD15}"):
        assert words in str(caught.value)


def test_the_configuration_of_the_family_comes_from_the_hubs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = written(tmp_path)
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    repository = cache / f"models--{SD15.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(tmp_path / "config", snapshot, ignore=shutil.ignore_patterns("*.safetensors"))
    default = model.model_copy(update={"config": None})
    assert locate_configuration(default).resolve() == snapshot.resolve()
    assert torch.equal(drawn(load_family(default).pipeline), drawn(FAMILIES["sd1"](1)))
    named = model.model_copy(update={"config": SD15})
    assert locate_configuration(named).resolve() == snapshot.resolve()


def test_sd2_needs_a_configuration(tmp_path: Path) -> None:
    model = written(tmp_path, "sd2").model_copy(update={"config": None})
    with pytest.raises(UsageError, match=r"noise \(512 px\) or velocity \(768 px\).*Set model\.config"):
        load_family(model)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("nowhere/at/all", "model.config = 'nowhere/at/all': no such folder"),
        ("someone/else", "model.config = 'someone/else' is not in the local cache"),
        ("embedded:shapes", "cannot be read as a checkpoint with the configuration"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(config: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=reason):
        load_family(written(tmp_path).model_copy(update={"config": config}))


def test_a_configuration_of_another_kind_is_named(tmp_path: Path) -> None:
    model = written(tmp_path)
    index = tmp_path / "config" / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "FluxPipeline"))
    with pytest.raises(UsageError, match="is of a FluxPipeline; a single file is read as one of Stable"):
        load_family(model)


@pytest.mark.parametrize("lost", ["model.diffusion_model.out.2.weight", "first_stage_model.decoder.conv_out.bias"])
def test_a_file_with_lost_weights_is_refused(lost: str, tmp_path: Path) -> None:
    model = written(tmp_path)
    tensors = load_file(model.pretrained)
    del tensors[lost]
    save_file(tensors, model.pretrained)
    with pytest.raises(UsageError, match="cannot be read as a checkpoint with the configuration"):
        load_family(model)


def planned(model: Model) -> dict[str, str]:
    tree = {"model": model.model_dump(exclude_none=True), "reward": [{"name": "brightness"}]}
    return dict(make_plan(from_dict({**tree, "prompts": {"train": ["a"], "evaluation": ["b"]}}), 1).lines())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_counts_what_is_in_the_file(family: str, tmp_path: Path) -> None:
    text = planned(written(tmp_path, family))
    pipeline = FAMILIES[family](1)
    count = sum(parameter.numel() for parameter in pipeline.unet.parameters())
    assert f"{count:,} parameters (100.00%" in text["trained"]
    assert text["download"].startswith("nothing")


def test_the_plan_of_a_file_without_configuration(tmp_path: Path) -> None:
    """SD 1's architecture is known; that this file is not of its size is said before anything is downloaded."""
    model = written(tmp_path).model_copy(update={"config": None})
    words = r"holds a UNet2DConditionModel of [\d,]+ parameters .* 859,520,964: set model\.config"
    with pytest.raises(UsageError, match=words):
        planned(model)


U, V, T = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
OTHERS: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "without a VAE": (
        lambda s: {k: v for k, v in s.items() if not k.startswith(V)},
        r"has no VAE \(tensors first_stage",
    ),
    "without text": (lambda s: {k: v for k, v in s.items() if not k.startswith(T)}, "has no text encoder"),
    "a UNet": (lambda s: {k.removeprefix(U): v for k, v in s.items() if k.startswith(U)}, "no UNet and no VAE and no"),
    "a VAE": (lambda s: {k.removeprefix(V): v for k, v in s.items() if k.startswith(V)}, "no UNet and no VAE and no"),
    "compiled": (lambda s: {f"_orig_mod.{k}": v for k, v in s.items()}, "saved from a wrapped network"),
    "an embedding": (lambda s: {"emb_params": torch.zeros(2, 16)}, "is a textual inversion and not a model"),
    "a ControlNet": (lambda s: {"control_model.input_blocks.0.0.weight": torch.zeros(1)}, "is a ControlNet"),
    "a LoRA": (
        lambda s: {"lora_unet_x.lora_down.weight": torch.zeros(4, 8)},
        r"is a LoRA and not a model.*model\.start",
    ),
    "FLUX": (lambda s: {"double_blocks.0.img_attn.qkv.weight": torch.zeros(4, 8)}, "is a FLUX checkpoint"),
    "a LoRA of FLUX": (
        lambda s: {"diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": torch.zeros(4, 8)},
        "is a LoRA and not a model",
    ),
    "a LoRA of FLUX by XLabs": (
        lambda s: {"double_blocks.0.processor.qkv_lora1.down.weight": torch.zeros(4, 8)},
        "is a LoRA and not a model",
    ),
    "a LoHa": (lambda s: {"lora_unet_x.hada_w1_a": torch.zeros(4, 8)}, "not a model"),
    "for inpainting": (lambda s: s | {f"{U}input_blocks.0.0.weight": torch.zeros(8, 9, 3, 3)}, "9 input .*inpainting"),
    "for edits": (lambda s: s | {f"{U}input_blocks.0.0.weight": torch.zeros(8, 8, 3, 3)}, "takes 8 input channels"),
    "integers": (lambda s: s | {f"{U}input_blocks.0.0.weight": torch.zeros(8, 4, 3, 3, dtype=torch.int8)}, "quantized"),
}
"""What a file holds in place of a whole checkpoint, and words of the message."""


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_of_another_kind_is_named_by_training_and_plans(name: str, tmp_path: Path) -> None:
    change, words = OTHERS[name]
    model = written(tmp_path)
    save_file(change(load_file(model.pretrained)), model.pretrained)
    for use in (load_family, planned):
        with pytest.raises(UsageError, match=words) as caught:
            use(model)
        assert model.pretrained in str(caught.value)


def test_a_file_of_no_numbers_is_refused(tmp_path: Path) -> None:
    model = written(tmp_path)
    key = f"{V}decoder.conv_out.bias"
    tensors = load_file(model.pretrained)
    save_file(tensors | {key: torch.full_like(tensors[key], torch.nan).half()}, model.pretrained)
    with pytest.raises(UsageError, match=r"model\.safetensors.*vae.*decoder\.conv_out\.bias are not finite"):
        load_family(model)


def test_a_folder_that_is_called_as_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(UsageError, match="is a folder, but amsd reads"):
        load_family(Model(pretrained=str(tmp_path / "x.safetensors")))


@pytest.mark.parametrize(
    ("tensor", "family"),
    [
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3"),
        ("double_blocks.0.img_attn.qkv.weight", "FLUX"),
    ],
)
def test_single_files_of_other_families_are_named_by_training_and_plans(
    tensor: str, family: str, tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    save_file({tensor: torch.zeros(2, 2)}, file)
    for use in (load_family, planned):
        with pytest.raises(UsageError, match=f"is a {family} checkpoint.*name the diffusers folder or the hub id"):
            use(Model(pretrained=str(file)))
