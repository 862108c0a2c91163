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
    "a dora": (
        "x.safetensors",
        {f"{LAYER}.lora_down.weight": torch.zeros(4, 8), f"{LAYER}.dora_scale": torch.ones(8, 1)},
        "is a DoRA in the words of kohya",
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
