"""Files that are no model or no sound LoRA are refused by what they are, and named as the user named them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from amsd.diffusion.agreement import require_agreement
from amsd.diffusion.families import family_for
from amsd.diffusion.parameterizations import build_policy
from amsd.diffusion.start_weights import start_from
from amsd.errors import UsageError
from amsd.evaluation.protocol import sampler_for
from amsd.experiment.examine import examine
from amsd.experiment.inputs import Inputs, check_inputs
from amsd.experiment.models import load_model
from amsd.experiment.sample import SampleRequest, pictures
from amsd.recipe import EvaluationSetting, Model, Recipe, Schedule, from_dict
from tests import pipelines
from tests.diffusion.test_start_weights import made

LAYER = "lora_unet_down_blocks_0_attentions_0_proj_in"
FILES: dict[str, tuple[str, Any, str]] = {
    "loha": ("x.safetensors", {f"{LAYER}.hada_w1_a": torch.zeros(8, 4)}, "is a LyCORIS adapter"),
    "lokr": ("x.safetensors", {f"{LAYER}.lokr_w1": torch.zeros(8, 8)}, "is a LyCORIS adapter"),
    "ia3": ("x.safetensors", {f"{LAYER}.on_input": torch.zeros(8)}, "is a LyCORIS adapter"),
    "whole differences": ("x.safetensors", {f"{LAYER}.diff": torch.zeros(8, 8)}, "is a LyCORIS adapter"),
    "magnitudes of another layer": (
        "x.safetensors",
        {
            f"{LAYER}.lora_A.weight": torch.zeros(4, 8),
            f"{LAYER}.lora_B.weight": torch.zeros(8, 4),
            f"{LAYER}.lora_magnitude_vector": torch.ones(5),
        },
        "its magnitudes for unet.down_blocks.0.attentions.0.proj_in are 5 numbers, but the layer has 8 outputs",
    ),
    "a dora": (
        "x.safetensors",
        {f"{LAYER}.lora_down.weight": torch.zeros(4, 8), f"{LAYER}.dora_scale": torch.ones(8, 1)},
        "is a DoRA in the format of kohya",
    ),
    "an embedding": ("x.safetensors", {"emb_params": torch.zeros(2, 16)}, "is a textual inversion"),
    "no numbers": ("x.safetensors", None, "weights of .*lora_.* are not finite"),
    "a pickle": ("x.bin", {}, "is a file that amsd does not read: checkpoints are .safetensors"),
    "nothing": ("x.safetensors", {}, "cannot be read as a checkpoint"),
}
"""Name of the file, its tensors (None: a LoRA of NaN), and words of the message."""


@pytest.fixture
def base(tmp_path: Path) -> Model:
    pipelines.stable_diffusion().save_pretrained(tmp_path / "model")
    return Model(pretrained=str(tmp_path / "model"))


@pytest.mark.parametrize("kind", FILES)
def test_other_files_are_told_apart(kind: str, base: Model, tmp_path: Path) -> None:
    name, tensors, words = FILES[kind]
    file = tmp_path / name
    if tensors is None:
        tensors = {key: value * torch.nan for key, value in load_file(made(tmp_path / "lora")).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UsageError, match=words) as caught:
        load_model(str(file), base, torch.device("cpu"))
    assert "model.pretrained" not in str(caught.value)
    started = base.model_copy(update={"start": str(file)})
    with pytest.raises(UsageError, match=words) as caught:
        start_from(build_policy(family_for(pipelines.stable_diffusion()), started), started)
    assert "model.pretrained" not in str(caught.value)


def test_a_check_looks_at_what_training_begins_from(base: Model, tmp_path: Path) -> None:
    pipelines.stable_diffusion_xl().save_pretrained(tmp_path / "xl")

    def chosen(start: str) -> Recipe:
        model = base.model_dump(exclude_none=True) | {"start": start}
        return from_dict({"reward": [{"name": "brightness"}], "model": model}, source="test")

    with pytest.raises(UsageError, match=r"model\.start = .*nowhere.*: there is nothing at this path"):
        check_inputs(chosen(str(tmp_path / "nowhere")))
    with pytest.raises(UsageError, match=r"model\.start = .*xl.*do not fit the network"):
        examine(chosen(str(tmp_path / "xl")), Inputs(None, None))
    lora, with_text = made(tmp_path / "lora"), made(tmp_path / "text", text=True)
    state = load_file(lora)
    save_file(
        {f"unet.nowhere.lora{key.rpartition('.lora')[2]}": state[key] for key in state}, tmp_path / "far.safetensors"
    )
    for start, words in ((with_text, "changes the text encoder too"), (tmp_path / "far.safetensors", "have no place")):
        with pytest.raises(UsageError, match=words):
            examine(chosen(str(start)), Inputs(None, None))
    assert examine(chosen(str(lora)), Inputs(None, None)) == []
    assert examine(chosen(base.pretrained), Inputs(None, None)) == []


def changed(file: Path, change: Any) -> None:
    """The first tensor of a file by its name becomes what `change` makes of it."""
    tensors = load_file(file)
    name = min(name for name, value in tensors.items() if value.is_floating_point())
    save_file(tensors | {name: change(tensors[name])}, file, metadata={"format": "pt"})


NOT_FINITE = {
    "unet": "unet/diffusion_pytorch_model",
    "vae": "vae/diffusion_pytorch_model",
    "text": "text_encoder/model",
}


@pytest.mark.parametrize("part", NOT_FINITE)
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_a_check_reads_every_number_of_the_model(part: str, value: float, base: Model) -> None:
    changed(Path(base.pretrained) / f"{NOT_FINITE[part]}.safetensors", lambda tensor: tensor.half().fill_(value))
    recipe = from_dict({"reward": [{"name": "brightness"}], "model": {"pretrained": base.pretrained}}, source="test")
    with pytest.raises(UsageError, match=rf"{NOT_FINITE[part]}.*: the weights of .* are not finite"):
        examine(recipe, Inputs(None, None))


def test_large_weights_of_half_precision_are_finite(base: Model) -> None:
    changed(
        Path(base.pretrained) / "unet/diffusion_pytorch_model.safetensors", lambda t: torch.full_like(t, 6e4).half()
    )
    recipe = from_dict({"reward": [{"name": "brightness"}], "model": {"pretrained": base.pretrained}}, source="test")
    assert examine(recipe, Inputs(None, None)) == []


BEGINNINGS: dict[str, tuple[dict[str, Any], str]] = {
    "another rank": (
        {"parameterization": "lora", "lora": {"rank": 3}},
        "Set model.lora.rank = 4 and model.lora.alpha = 2",
    ),
    "other layers": (
        {"parameterization": "lora", "lora": {"rank": 4, "alpha": 2, "targets": ["to_q"]}},
        "lora.targets",
    ),
    "an offset": ({"parameterization": "offset"}, "a checkpoint of an offset"),
}
"""What a recipe says of its parameterization, and words of the refusal to begin from a LoRA of rank 4 and alpha 2."""


@pytest.mark.parametrize("name", BEGINNINGS)
def test_a_check_compares_a_start_with_the_parameterization(name: str, base: Model, tmp_path: Path) -> None:
    keys, words = BEGINNINGS[name]
    model = {"pretrained": base.pretrained, "start": str(made(tmp_path / "lora")), **keys}
    with pytest.raises(UsageError, match=words):
        examine(from_dict({"reward": [{"name": "brightness"}], "model": model}, source="test"), Inputs(None, None))


def test_a_check_looks_into_the_checkpoint_that_training_begins_from(base: Model, tmp_path: Path) -> None:
    def begun(start: Path, **keys: Any) -> list[str]:
        model = {"pretrained": base.pretrained, "start": str(start), **keys}
        recipe = from_dict({"reward": [{"name": "brightness"}], "model": model}, source="test")
        return examine(recipe, Inputs(None, None))

    checkpoint = tmp_path / "run" / "checkpoints" / "step-000001"
    build_policy(family_for(pipelines.stable_diffusion()), base).as_it_is()(checkpoint)
    (checkpoint / "manifest.json").write_text("{}")
    assert begun(checkpoint) == []
    with pytest.raises(UsageError, match="can begin from"):
        begun(checkpoint, parameterization="lora")
    changed(checkpoint / "unet" / "diffusion_pytorch_model.safetensors", lambda tensor: tensor * torch.nan)
    with pytest.raises(UsageError, match="are not finite"):
        begun(checkpoint)


@pytest.mark.parametrize(("asked", "words"), [
    ({"guidance_scale": 0.5}, "ignore scales below 1"), ({"eta": 2.0}, "takes eta up to 1"),
    ({"num_inference_steps": 2000}, "has 1000 timesteps"),
])  # fmt: skip
def test_what_a_plain_sampler_would_not_do_is_refused_alike(asked: dict[str, Any], words: str) -> None:
    family = family_for(pipelines.stable_diffusion())
    recipe = from_dict({"reward": [{"name": "brightness"}]}, source="test")
    with pytest.raises(UsageError, match=words):
        pictures(family, recipe, "a cat", SampleRequest(("a cat",), **asked))
    plain = {"eta": 0.0, "scheduler": "default", "guidance_scale": 2.0, "num_inference_steps": 4}
    with pytest.raises(UsageError, match=words):
        sampler_for(EvaluationSetting.model_validate(plain | asked), family, Schedule())


@pytest.mark.parametrize("size", [(16, 24), (24, 8)])
def test_pictures_of_any_size_the_model_can_draw(size: tuple[int, int]) -> None:
    """In training's latents and decoder, in evaluation's call and in plain sampling; SDXL is told the size."""
    recipe = from_dict({"reward": [{"name": "brightness"}]}, source="test")
    for build in (pipelines.stable_diffusion, pipelines.stable_diffusion_xl):
        family = family_for(build(), Model(size=size))
        require_agreement(family)
        assert family.decode(torch.zeros(1, *family.latent_shape)).shape[-2:] == size
        (picture,) = pictures(family, recipe, "a cat", SampleRequest(("a cat",), num_inference_steps=2))
        assert (picture.height, picture.width) == size
        assert family.documented_call(family.model, 2.0)["height"] == size[0]
    ids = family.encode(["a cat"]).added["time_ids"][0].tolist()
    assert ids == [*map(float, size), 0.0, 0.0, *map(float, size)]
    with pytest.raises(UsageError, match="multiples of 8 pixels only"):
        family_for(pipelines.stable_diffusion(), Model(size=(10, 16)))
