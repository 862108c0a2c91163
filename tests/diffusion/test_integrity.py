"""What is loaded is what the files mean: every way in which a model can be damaged or mixed up is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PNDMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from amsd.cli.app import app
from amsd.diffusion.agreement import require_agreement
from amsd.diffusion.blueprint import blueprint
from amsd.diffusion.families import family_for
from amsd.diffusion.loading import load_family
from amsd.diffusion.parameterizations import build_policy
from amsd.errors import RunError, UsageError
from amsd.experiment.setup import require_samplers
from amsd.recipe import Model, from_dict
from amsd.rewards.embedders import CLIPEmbedder
from amsd.rewards.table import resolve_embedder, resolve_reward
from tests import ldm, pipelines
from tests.rewards import tiny

UNET, TEXT, VAE = (
    "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
)  # fmt: skip
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 492265168\n"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    pipelines.stable_diffusion().save_pretrained(folder)
    return folder


def tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        save_file(change(load_file(file)), file, metadata={"format": "pt"})

    return damage


def configuration(**change: Any) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        file.write_text(json.dumps(json.loads(file.read_text()) | change))

    return damage


def pickled(file: Path, half: bool = False, **more: Any) -> None:
    """The file's tensors, and more, as an older version saved them."""
    other = file.with_name(f"{'pytorch_model' if 'text' in str(file.parent) else file.stem}.bin")
    torch.save(load_file(file) | more, other)
    file.unlink()
    if half:
        other.write_bytes(other.read_bytes()[: other.stat().st_size // 2])


def first(state: dict[str, torch.Tensor], change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    name = next(name for name, value in sorted(state.items()) if value.ndim == 1)
    return state | {name: change(state[name])}


#: File, what happens to it, words of the message, and whether a dry run sees it too.
DAMAGES: dict[str, tuple[str, Callable[[Path], Any], str, bool]] = {
    "compiled unet": (UNET, tensors(lambda s: {f"_orig_mod.{k}": v for k, v in s.items()}), "_orig_mod", True),
    "compiled text": (TEXT, tensors(lambda s: {f"_orig_mod.{k}": v for k, v in s.items()}), "_orig_mod", True),
    "parallel vae": (VAE, tensors(lambda s: {f"module.{k}": v for k, v in s.items()}), "'module.'", True),
    "hole in unet": (UNET, tensors(lambda s: {k: v for k, v in s.items() if "mid" not in k}), "unet.*mid_block", True),
    "half a text encoder": (TEXT, tensors(lambda s: {k: v for k, v in s.items() if "layers.1" not in k}),
                            r"text_encoder.*layers\.1", True),
    "hole in vae": (VAE, tensors(lambda s: {k: v for k, v in s.items() if "decoder.conv_out" not in k}),
                    "vae.*conv_out", True),
    "more in unet": (UNET, tensors(lambda s: s | {"extra.weight": torch.zeros(2)}), r"left over.*extra\.weight", True),
    "more in text": ("text_encoder/config.json", configuration(num_hidden_layers=1),
                     r"text_encoder.*left over: .*layers\.1", True),
    "other shape in unet": (UNET, tensors(lambda s: first(s, lambda v: v[:-1].clone())), "unet", True),
    "other shape in text": (TEXT, tensors(lambda s: first(s, lambda v: v[:-1].clone())), "of another shape", False),
    "pointer unet": (UNET, lambda f: f.write_bytes(POINTER), r"unet.*git-lfs pointer.*git lfs pull", True),
    "pointer text": (TEXT, lambda f: f.write_bytes(POINTER), r"text_encoder.*git-lfs pointer", True),
    "half a file": (TEXT, lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2]), "is cut off: it has", True),
    "long file": (UNET, lambda f: f.write_bytes(f.read_bytes() + b"x"), "unet.*is cut off|damaged", True),
    "web page": (VAE, lambda f: f.write_bytes(b"<!DOCTYPE html><html>Sign in"), "web page", True),
    "empty file": (UNET, lambda f: f.write_bytes(b""), "is empty", True),
    "no weights": (UNET, lambda f: f.unlink(), "unet holds no weights", True),
    "no text encoder": (TEXT, lambda f: shutil.rmtree(f.parent), "no folder text_encoder/", True),
    "broken index": ("model_index.json", lambda f: f.write_text("{"), r"model_index\.json is not valid JSON", True),
    "list as index": ("model_index.json", lambda f: f.write_text("[]"), "JSON list", True),
    "broken config": ("unet/config.json", lambda f: f.write_text('{"a":'), r"unet.config\.json is not valid", True),
    "no config": ("vae/config.json", lambda f: f.unlink(), r"vae.config\.json does not exist", True),
    "broken scheduler": ("scheduler/scheduler_config.json", lambda f: f.write_text("x"), "scheduler_config", True),
    "pointer tokenizer": ("tokenizer/tokenizer.json", lambda f: f.write_bytes(POINTER), "tokenizer.*git-lfs", True),
    "no vocabulary": ("tokenizer/tokenizer.json", lambda f: f.unlink(), "tokenizer", True),
    "unknown class": ("model_index.json", configuration(unet=["diffusers", "UNet9"]), "no class UNet9|UNet9", True),
    "own code": ("model_index.json", configuration(unet=["my_unet", "MyUNet"]), "does not run code", True),
    "another family": ("model_index.json", configuration(_class_name="KandinskyPipeline"), "KandinskyPipeline", True),
    "a folder for a file": (UNET, lambda f: (f.unlink(), f.mkdir()), "does not exist", True),
    "a link to itself": (TEXT, lambda f: (f.unlink(), f.symlink_to(f)), "does not exist", True),
    "no tensors": (TEXT, tensors(lambda s: {}), "missing", True),
    "weights that are no numbers": (VAE, tensors(lambda s: {k: v * torch.nan for k, v in s.items()}),
                                    "vae.*weights of .* are not finite", False),
    "a pickle cut off": (UNET, lambda f: pickled(f, half=True), r"unet.*\.bin cannot be read", True),
    "a pickle of more": (TEXT, lambda f: pickled(f, more=Path("x")), r"pytorch_model\.bin cannot be read", True),
    "code": (UNET, lambda f: pickled(f, more=Path("x")), r"it holds more than tensors, which could run code", True),
    "an entry of nothing": ("model_index.json", configuration(unet=[]), "expected a library and a class", True),
    "an entry of numbers": ("model_index.json", configuration(unet=["diffusers", 7]), "a library and a class", True),
    "a list as pipeline": ("model_index.json", configuration(_class_name=["pipeline", "Mine"]), "amsd supports", True),
    "half an SDXL": ("model_index.json", configuration(_class_name="StableDiffusionXLPipeline"),
                     "it has no text_encoder_2", True),
    "no tokenizer": ("model_index.json", configuration(tokenizer=[None, None]), "tokenizer", True),
    "a tokenizer without an end": ("tokenizer/tokenizer_config.json", lambda f: f.unlink(),
                                   "does not say how many tokens.*model_max_length = 16", True),
    "a tokenizer that gives more": ("tokenizer/tokenizer_config.json", configuration(model_max_length=77),
                                    "gives up to 77 tokens.*reads 16", True),
    "the whole of a CLIP": ("model_index.json", configuration(text_encoder=["transformers", "CLIPModel"]),
                            "text_encoder is a CLIPModel.* needs a CLIPTextModel", True),
    "a pooled text encoder": ("model_index.json", configuration(
        text_encoder=["transformers", "CLIPTextModelWithProjection"]), "needs a CLIPTextModel", True),
    "a scale of nothing": ("vae/config.json", configuration(scaling_factor=0), "scaling_factor = 0", True),
    "no size": ("unet/config.json", configuration(sample_size=None), r"set model\.size", True),
    "a byte order mark": ("unet/config.json", lambda f: f.write_bytes(b"\xef\xbb\xbf" + f.read_bytes()),
                          r"config\.json begins with a byte order mark", True),
    "too deep": ("vae/config.json", lambda f: f.write_text("[" * 100_000), r"config\.json is not valid JSON", True),
    "no number": ("scheduler/scheduler_config.json", configuration(beta_end=float("nan")), "NaN is not a number", True),
    "no end": ("scheduler/scheduler_config.json", configuration(beta_end=float("inf")), "= inf; .* finite", True),
    "quantized": ("unet/config.json", configuration(quantization_config={"quant_method": "bitsandbytes"}),
                  r"unet.config\.json is that of a quantized network.*nf4", True),
    "quantized text": ("text_encoder/config.json", configuration(quantization_config={"quant_method": "gptq"}),
                       "text_encoder.*quantized", True),
    "integers": (UNET, tensors(lambda s: s | {"conv_in.weight": torch.zeros(8, 4, 3, 3, dtype=torch.int8)}),
                 r"matrices are 8-bit integers \(conv_in\.weight\)", True),
    "a table without end": ("scheduler/scheduler_config.json", configuration(num_train_timesteps=10**9),
                            "num_train_timesteps = '1000000000'; .* from 1 to 100,000", True),
    "no timesteps": ("scheduler/scheduler_config.json", configuration(num_train_timesteps=0), "num_train_times", True),
    "timesteps in words": ("scheduler/scheduler_config.json", configuration(num_train_timesteps="1000"),
                           "must be a whole number", True),
    "no shift": ("scheduler/scheduler_config.json", configuration(shift=0), "shift = '0'; it must be .* above 0", True),
    "a tokenizer of nothing": ("tokenizer/tokenizer_config.json", configuration(model_max_length=0),
                               "gives 0 tokens at most", True),
    "unknown prediction": ("scheduler/scheduler_config.json", configuration(prediction_type="noise"), "'noise'", True),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_refused_and_its_file_named(name: str, good: Path, tmp_path: Path) -> None:
    file, damage, words, planned = DAMAGES[name]
    shutil.copytree(good, tmp_path / "model")
    damage(tmp_path / "model" / file)
    model = Model(pretrained=str(tmp_path / "model"))
    with pytest.raises(UsageError, match=f"(?s){words}") as caught:
        load_family(model)
    assert str(tmp_path / "model") in str(caught.value) or "model.size" in str(caught.value)
    if planned:
        with pytest.raises(UsageError):
            blueprint(model)


SCHEDULERS: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "of another path": ({}, "FlowMatchEulerDiscreteScheduler", "without a table of betas.*another path"),
    "beyond one": ({"beta_end": 2.0}, None, "are not between 0 and 1"),
    "with fewer steps": ({"num_train_timesteps": 3}, None, "num_inference_steps = 50: .* has 3 timesteps"),
}
"""What a model's scheduler says, its class in the index, and words of the message."""


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_that_training_would_refuse_is_refused_everywhere(name: str, good: Path, tmp_path: Path) -> None:
    change, other, words = SCHEDULERS[name]
    model = tmp_path / "model"
    shutil.copytree(good, model)
    configuration(**change)(model / "scheduler" / "scheduler_config.json")
    if other:
        configuration(scheduler=["diffusers", other])(model / "model_index.json")
    recipe = from_dict({"reward": [{"name": "brightness"}], "model": {"pretrained": str(model)}}, source="test")
    for family in (load_family(recipe.model), blueprint(recipe.model).family):
        with pytest.raises(UsageError, match=words):
            require_samplers(family, recipe, evaluates=True)
    outcome = CliRunner().invoke(app, ["recipe", "check", "shapes", "--set", f"model.pretrained={model}"])
    assert isinstance(outcome.exception, UsageError)


def test_a_text_encoder_in_a_whole_clip_is_read_and_said(
    good: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(good, tmp_path / "model")
    file = tmp_path / "model" / TEXT
    # Files of before transformers 5.6 have the prefix in a text encoder of its own, too.
    state = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in load_file(file).items()}
    more = {"vision_model.post_layernorm.weight": torch.zeros(4), "visual_projection.weight": torch.zeros(4, 4)}
    save_file(state | more, file, metadata={"format": "pt"})
    found = load_family(Model(pretrained=str(tmp_path / "model"))).pipeline.text_encoder.state_dict()
    own = load_family(Model(pretrained=str(good))).pipeline.text_encoder.state_dict()
    assert all(torch.equal(own[name], value) for name, value in found.items())
    assert "holds a whole CLIP model. amsd uses its text encoder" in caplog.text
    blueprint(Model(pretrained=str(tmp_path / "model")))


def test_a_configuration_of_another_class_is_said(good: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(good, tmp_path / "model")
    configuration(_class_name="AutoencoderKL")(tmp_path / "model" / "unet" / "config.json")
    load_family(Model(pretrained=str(tmp_path / "model")))
    assert "describes a AutoencoderKL, but model_index.json names a UNet2DConditionModel" in caplog.text


def test_the_whole_folder_is_loaded_and_planned(good: Path) -> None:
    model = Model(pretrained=str(good))
    require_agreement(load_family(model))
    blueprint(model)


def test_a_scheduler_that_begins_with_runge_kutta_steps_agrees(good: Path) -> None:
    family = load_family(Model(pretrained=str(good)))
    family.pipeline.scheduler = PNDMScheduler.from_config(family.pipeline.scheduler.config, skip_prk_steps=False)
    require_agreement(family)  # fewer than four steps are none for it


def test_pickles_of_tensors_are_read_without_a_complaint(
    good: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(good, tmp_path / "model")
    for name in (UNET, VAE):
        pickled(tmp_path / "model" / name)
    family = load_family(Model(pretrained=str(tmp_path / "model")))
    own = load_file(good / UNET)
    assert all(torch.equal(own[name], value) for name, value in family.denoiser.state_dict().items())
    said = capfd.readouterr()
    assert said.out + said.err == ""


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_only_half_precision_files_need_their_variant(variant: str | None, tmp_path: Path) -> None:
    pipelines.stable_diffusion().save_pretrained(tmp_path, variant="fp16")
    model = Model(pretrained=str(tmp_path), variant=variant)
    if variant:
        load_family(model)
        return
    for attempt in (load_family, blueprint):
        with pytest.raises(UsageError, match=r'model\.variant = "fp16"'):
            attempt(model)


SHARDS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "whole": (lambda index: None, ""),
    "one lost": (
        lambda index: next(index.parent.glob("*-00002-of-*")).unlink(),
        r"lacks .*-00002-of-\d+\.saf.* \(1 of ",
    ),
    "no index": (lambda index: index.unlink(), r"index.*\.json does not exist"),
    "broken index": (lambda index: index.write_text("{"), r"index.*\.json is not valid JSON"),
    "pointer": (lambda index: index.write_bytes(POINTER), r"index.*\.json is a git-lfs pointer"),
    "no table": (lambda index: index.write_text('{"weight_map": []}'), "has no table of files"),
    "no file of it": (lambda index: index.write_text('{"weight_map": {"a": "x.bin"}}'), r"lacks x\.bin, which .*index"),
}
"""What happens to the index of a network in several files, and words of the message."""


@pytest.mark.parametrize(
    ("name", "variant"), [*((name, None) for name in SHARDS), ("whole", "fp16"), ("no index", "fp16")]
)
def test_weights_in_several_files(name: str, variant: str | None, good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "unet")
    original = pipelines.stable_diffusion()
    original.unet.save_pretrained(tmp_path / "model" / "unet", max_shard_size="100KB", variant=variant)
    damage, words = SHARDS[name]
    damage(next((tmp_path / "model" / "unet").glob("*.index*.json")))
    model = Model(pretrained=str(tmp_path / "model"), variant=variant)
    for attempt in (load_family, blueprint):
        if words:
            with pytest.raises(UsageError, match=words):
                attempt(model)
        else:
            attempt(model)


def test_where_a_whole_file_lies_beside_its_shards_the_library_chooses(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "model")
    other = pipelines.stable_diffusion(seed=5)
    other.unet.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    other.text_encoder.save_pretrained(tmp_path / "texts", max_shard_size="10KB")
    for folder, name in (("shards", "unet"), ("texts", "text_encoder")):
        for file in (tmp_path / folder).glob("*-of-*"):
            shutil.copy(file, tmp_path / "model" / name)
        shutil.copy(next((tmp_path / folder).glob("*.index.json")), tmp_path / "model" / name)
    loaded = load_family(Model(pretrained=str(tmp_path / "model"))).pipeline
    assert torch.equal(loaded.unet.conv_out.weight, other.unet.conv_out.weight)
    own = pipelines.stable_diffusion().text_encoder.state_dict()
    assert all(torch.equal(own[key], value) for key, value in loaded.text_encoder.state_dict().items())


def test_parts_of_different_models_are_refused(tmp_path: Path) -> None:
    inpainting = pipelines.stable_diffusion()
    inpainting.register_modules(unet=UNet2DConditionModel.from_config({**inpainting.unet.config, "in_channels": 9}))
    wide = pipelines.stable_diffusion()
    wide.register_modules(
        unet=UNet2DConditionModel.from_config({**inpainting.unet.config, "in_channels": 4, "cross_attention_dim": 24})
    )
    wrong = pipelines.stable_diffusion()
    wrong.tokenizer.add_tokens([f"<new-{number}>" for number in range(200)])
    for pipeline, words in ((inpainting, "9 input channels .*inpainting"), (wide, "width 24"), (wrong, "tokens")):
        folder = tmp_path / words[:4]
        pipeline.save_pretrained(folder)
        for attempt in (load_family, blueprint):
            with pytest.raises(UsageError, match=words):
                attempt(Model(pretrained=str(folder)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("manifest.json", "amsd export"), ("pytorch_lora_weights.safetensors", "LoRA"), ("config.json", "one network"),
        ("adapter_config.json", "adapter"),
    ],
)  # fmt: skip
def test_a_folder_of_another_kind_is_named(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(UsageError, match=words):
        load_family(Model(pretrained=str(tmp_path)))


@pytest.mark.parametrize("place", ["sd", "snapshots/0123abcd"])
def test_a_folder_around_a_pipeline_says_where_it_is(place: str, good: Path, tmp_path: Path) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).symlink_to(good)
    with pytest.raises(UsageError, match=rf"there is one in it: .*{place}"):
        load_family(Model(pretrained=str(tmp_path)))


@pytest.mark.parametrize("how", ["key", "metadata"])
def test_a_single_file_that_declares_velocity_is_obeyed(how: str, tmp_path: Path) -> None:
    original = pipelines.stable_diffusion_xl(attention=True, second_width=64)
    original.save_pretrained(tmp_path / "config")
    extra = {"v_pred": torch.zeros(1)} if how == "key" else {}
    metadata = {"format": "pt"} | ({"modelspec.prediction_type": "v"} if how == "metadata" else {})
    save_file({**ldm.checkpoint(original, "sdxl"), **extra}, tmp_path / "model.safetensors", metadata=metadata)
    model = Model(pretrained=str(tmp_path / "model.safetensors"), config=str(tmp_path / "config"))
    assert load_family(model).pipeline.scheduler.config.prediction_type == "v_prediction"


def test_a_single_file_with_more_layers_than_its_configuration_is_refused(tmp_path: Path) -> None:
    original = pipelines.stable_diffusion(attention=True)
    original.save_pretrained(tmp_path / "config")
    state = ldm.checkpoint(original)
    more = {
        key.replace("layers.1.", "layers.2."): value.clone()
        for key, value in state.items()
        if "encoder.layers.1." in key
    }
    save_file(state | more, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="parameters of text_encoder"):
        load_family(Model(pretrained=str(tmp_path / "model.safetensors"), config=str(tmp_path / "config")))


def test_sdxl_that_is_not_square_has_its_sizes_in_order() -> None:
    pipeline = pipelines.stable_diffusion_xl()
    pipeline.unet.register_to_config(sample_size=(8, 12))
    family = family_for(pipeline)
    assert family.size == (16, 24)
    assert family.encode(["a cat"]).added["time_ids"][0].tolist() == [16, 24, 0, 0, 16, 24]
    require_agreement(family)


def test_statistics_of_the_autoencoder_are_used_as_the_pipeline_uses_them() -> None:
    pipeline = pipelines.stable_diffusion_xl()
    pipeline.vae.register_to_config(latents_mean=[-1.6, 1.1, 3.3, -2.6], latents_std=[8.4, 5.9, 6.5, 5.2])
    require_agreement(family_for(pipeline))


@pytest.mark.parametrize("family", [pipelines.stable_diffusion, pipelines.stable_diffusion_xl])
def test_a_disagreement_with_the_pipeline_is_found(family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    family = family_for(family())
    require_agreement(family)
    with monkeypatch.context() as patch:
        patch.setattr(type(family), "_unscaled", lambda self, config, latents: latents)
        with pytest.raises(RunError, match="do not agree on the latents of the decoder"):
            require_agreement(family)
    with monkeypatch.context() as patch:
        encode = type(family).encode
        patch.setattr(type(family), "encode", lambda self, prompts: encode(self, [f"{p} x" for p in prompts]))
        with pytest.raises(RunError, match="do not agree on the encoder_hidden_states of the denoiser"):
            require_agreement(family)


@pytest.mark.parametrize("parameterization", ["full", "lora", "offset"])
def test_a_damaged_checkpoint_is_refused(parameterization: Any, tmp_path: Path) -> None:
    model = Model(parameterization=parameterization)
    policy = build_policy(family_for(pipelines.stable_diffusion()), model)
    policy.save(tmp_path)
    (file,) = tmp_path.rglob("*.safetensors")
    state = load_file(file)
    name = sorted(state)[0]
    for change, words in (
        ({key: value for key, value in state.items() if key != name}, "1 missing"),
        (state | {"extra": torch.zeros(1)}, "left over: extra"),
    ):
        save_file(change, file, metadata={"format": "pt"})
        with pytest.raises(UsageError, match=words):
            policy.load(tmp_path)
    file.write_bytes(POINTER)
    with pytest.raises(UsageError, match="git-lfs pointer"):
        policy.load(tmp_path)


SCORER_DAMAGES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "pointer": ("model.safetensors", lambda f: f.write_bytes(POINTER), "git-lfs pointer"),
    "half": ("model.safetensors", lambda f: f.write_bytes(f.read_bytes()[:5000]), r"cut off"),
    "hole": ("model.safetensors", tensors(lambda s: {k: v for k, v in s.items() if "layers.0" not in k}), "missing"),
    "compiled": ("model.safetensors", tensors(lambda s: {f"_orig_mod.{k}": v for k, v in s.items()}), "_orig_mod"),
    "other shape": ("model.safetensors", tensors(lambda s: first(s, lambda v: v[:-1].clone())), "of another shape"),
    "broken config": ("config.json", lambda f: f.write_text("{"), "not valid JSON"),
    "wrong config": ("config.json", configuration(projection_dim="wide"), "cannot be read"),
    "pointer tokenizer": ("vocab.json", lambda f: f.write_bytes(POINTER), "cannot be read"),
}


@pytest.mark.parametrize("build", [lambda f: resolve_reward("clip-score", {"model": f}),
                                   lambda f: resolve_reward("pickscore", {"model": f, "tokenizer": f}),
                                   lambda f: resolve_embedder("clip", {"model": f})],
                         ids=["clip-score", "pickscore", "embedder"])  # fmt: skip
@pytest.mark.parametrize("name", SCORER_DAMAGES)
def test_damaged_scorers_are_refused_and_named(name: str, build: Callable[[str], Any], tmp_path: Path) -> None:
    folder = tiny.clip_folder(tmp_path / "clip")
    file, damage, words = SCORER_DAMAGES[name]
    build(str(folder))
    damage(folder / file)
    if name == "pointer tokenizer" and isinstance(build(str(tiny.clip_folder(tmp_path / "whole"))), CLIPEmbedder):
        return  # it reads no text
    with pytest.raises(UsageError, match=f"(?s){words}") as caught:
        build(str(folder))
    assert str(folder) in str(caught.value)
