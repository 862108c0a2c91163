"""Less memory: text encoders that leave the device, a base in four bits, an optimizer in eight."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from diffusers import StableDiffusion3Pipeline
from torch import nn
from typer.testing import CliRunner

from amsd.cli.app import app
from amsd.diffusion import texts
from amsd.diffusion.families import family_for
from amsd.diffusion.families.published import CLIP_G_POOLED, CLIP_L, CLIP_L_POOLED, T5_XXL, VAE, VAE_16
from amsd.diffusion.parameterizations import build_policy
from amsd.errors import UsageError
from amsd.experiment.inputs import check_inputs
from amsd.experiment.plan import Plan, make_plan
from amsd.recipe import Model, Optimizer, load_recipe
from amsd.training.optimization import build_optimizer
from amsd.training.state import load_optimizer, optimizer_as_it_is
from tests import pipelines
from tests.cli.commands import lines


def test_prompts_are_read_once_each_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    family = family_for(pipelines.stable_diffusion_3(), Model(max_sequence_length=4))
    read: list[list[str]] = []
    encode, empty = family.encode, family.encode_empty(3)
    monkeypatch.setattr(family, "encode", lambda prompts: read.append(list(prompts)) or encode(prompts))
    reader = texts.ReadPrompts(family, "", room=1)
    read.clear()
    found = reader(["a cat", "a dog", "a cat"])
    assert read == [["a cat"], ["a dog"]]
    assert torch.equal(found.prompt.hidden_states[2], encode(["a cat"]).hidden_states[0])
    assert torch.equal(found.prompt.added["pooled_projections"][1], encode(["a dog"]).added["pooled_projections"][0])
    assert torch.equal(found.negative.hidden_states, empty.hidden_states)
    reader(["a cat", "a dog"])  # there was room for one, the last
    assert read == [["a cat"], ["a dog"], ["a cat"]]


def test_text_encoders_come_to_the_device_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    family = family_for(pipelines.stable_diffusion_3(), Model(max_sequence_length=4))
    moves: list[str] = []
    for encoder in family.text_encoders:
        monkeypatch.setattr(encoder, "to", lambda device: moves.append(str(device)))
    with texts.on_device(family):
        pass
    assert moves == []
    monkeypatch.setattr(texts, "_device", lambda module: torch.device("meta"))
    with texts.on_device(family):
        assert moves == ["cpu"] * 3
    assert moves == ["cpu"] * 6


def test_a_frozen_base_of_four_bits_trains_adapters(tmp_path: Path) -> None:
    def policy(precision: str = "fp32") -> object:
        made = build_policy(
            family_for(pipelines.stable_diffusion_3(t5=False), Model(max_sequence_length=2)),
            Model.model_validate({"parameterization": "lora", "quantization": "nf4", "precision": precision}),
        )
        made.to(torch.device("cpu"))
        return made

    one, other = policy(), policy()
    layers = [name for name, module in one.trained_network.named_modules() if isinstance(module, Linear4bit)]
    assert len(layers) == 29  # those of the blocks; embeddings and the output layer stay
    assert all("transformer_blocks" in name for name in layers)
    whole = family_for(pipelines.stable_diffusion_3(t5=False), Model(max_sequence_length=2))
    given = one.family.encode(["a cat", "a dog"])
    x = torch.randn(2, *one.family.latent_shape, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([900.0, 100.0])
    exact = whole.network(whole.denoiser)(x, times, given)
    base = one.base(x, times, given)
    assert 0 < float((base - exact).norm() / exact.norm()) < 0.05
    assert torch.allclose(one.finetuned(x, times, given), base)
    moved = x.clone().requires_grad_(True)
    (product,) = torch.autograd.grad(one.base(moved, times, given).sum(), moved)
    assert float(product.norm()) > 0
    one.finetuned(x, times, given).square().mean().backward()
    assert all(value.grad is not None and value.dtype is torch.float32 for value in one.trainable.values())
    for value in one.trainable.values():
        value.data.add_(0.01)
    one.save(tmp_path)
    other.load(tmp_path)
    with torch.no_grad(), one.held():  # nothing is merged into four bits
        assert torch.equal(one.finetuned(x, times, given), other.finetuned(x, times, given))
    half = policy("bf16")
    with torch.no_grad(), half.held():
        assert torch.allclose(half.finetuned(x, times, given), base, atol=0.2)


def test_an_optimizer_of_eight_bits_goes_on_from_its_file(tmp_path: Path) -> None:
    settings = Optimizer(name="adamw-8bit", learning_rate=1e-2)

    def parameters() -> list[nn.Parameter]:
        random = torch.Generator().manual_seed(0)
        return [nn.Parameter(torch.randn(shape, generator=random)) for shape in ((64, 96), (96,), (128, 64))]

    def step(values: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        for value in values:
            value.grad = value.detach().clone()
        optimizer.step()

    values = parameters()
    optimizer = build_optimizer(values, settings)
    step(values, optimizer)
    optimizer_as_it_is(optimizer)(tmp_path)
    others = [nn.Parameter(value.detach().clone()) for value in values]
    resumed = build_optimizer(others, settings)
    load_optimizer(resumed, tmp_path)
    for _ in range(2):
        step(values, optimizer)
        step(others, resumed)
    assert all(torch.equal(a, b) for a, b in zip(values, others, strict=True))


RECIPE = """
[model]
pretrained = "{model}"
parameterization = "lora"
quantization = "nf4"
max_sequence_length = 2

[schedule]
num_inference_steps = 4
shift_terminal = 0.2

[guidance]
guidance_scale = 2.0

[method]
timesteps_per_trajectory = 2

[[reward]]
name = "brightness"

[prompts]
train = ["a red circle", "a big blue square"]
evaluation = ["a small red square", "a yellow circle"]

[optimizer]
name = "adamw-8bit"
learning_rate = 1e-2
warmup_steps = 0
prompts_per_step = 2
micro_batch = 2

[training]
steps = 2
checkpoint_every = 1
keep = 9
offload_text_encoders = true

[evaluation]
samples_per_prompt = 1

[tracking]
mode = "disabled"
"""


def test_all_of_it_through_the_command_line(tmp_path: Path) -> None:
    pipelines.stable_diffusion_3(t5=False).save_pretrained(tmp_path / "model")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(model=tmp_path / "model"), encoding="utf-8")

    def call(*arguments: str | Path) -> str:
        outcome = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)
        assert outcome.exit_code == 0, outcome.output
        return outcome.stdout

    assert "while they read prompts" in " ".join(call("train", recipe, "--dry-run").split())
    call("train", recipe, "--output", tmp_path / "run")
    call("train", recipe, "--output", tmp_path / "parts", "--set", "training.steps=1")
    call("train", recipe, "--output", tmp_path / "parts", "--resume")
    losses = [[line["loss"] for line in lines(tmp_path / name) if "loss" in line] for name in ("run", "parts")]
    assert losses[0] == losses[1]
    (result,) = json.loads(call("eval", tmp_path / "run", "--json")).values()
    assert result["metrics"]["brightness"]["paired"]["difference"] != 0
    call("export", tmp_path / "run", "--to", tmp_path / "export")
    exported = StableDiffusion3Pipeline.from_pretrained(tmp_path / "export", text_encoder_3=None, tokenizer_3=None)
    assert exported.transformer.transformer_blocks[0].attn.to_q.weight.dtype is torch.float32


def test_what_does_not_go_together_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"model\.quantization"):
        load_recipe("shapes", ["model.quantization=nf4"])
    with pytest.raises(UsageError, match=r"training\.fsdp"):
        load_recipe("shapes", ["training.fsdp=true", "optimizer.name=adamw-8bit"])
    monkeypatch.setattr("amsd.packages.find_spec", lambda name: None)
    for recipe, key in (
        (load_recipe("shapes-lora", ["model.quantization=nf4"]), "model.quantization = 'nf4'"),
        (load_recipe("shapes", ["optimizer.name=adamw-8bit"]), "optimizer.name = 'adamw-8bit'"),
    ):
        needed = rf"{key} needs the package bitsandbytes: uv pip install 'amsd\[quantized\]'"
        with pytest.raises(UsageError, match=needed):
            check_inputs(recipe)


def test_published_sizes_are_counted() -> None:
    """What these architectures have in public descriptions; not compared with the published files."""
    counted = [each.parameters for each in (CLIP_L, CLIP_L_POOLED, CLIP_G_POOLED, T5_XXL, VAE, VAE_16)]
    assert counted == [123_060_480, 123_650_304, 694_659_840, 4_762_310_656, 83_653_863, 83_819_683]


def test_the_plan_counts_what_is_left_on_the_device() -> None:
    def plan(recipe: str, *settings: str) -> Plan:
        return make_plan(load_recipe(recipe, settings), 1)

    plain = plan("flux-lora", "training.offload_text_encoders=false")
    away = plan("flux-lora", "training.offload_text_encoders=true")
    assert plain.memory_bytes - away.memory_bytes == 2 * (123_060_480 + 4_762_310_656)
    small = plan("flux-lora", "training.offload_text_encoders=true", "model.quantization=nf4")
    assert away.memory_bytes - small.memory_bytes == pytest.approx((2 - 4.127 / 8) * small.quantizable_parameters)
    assert small.quantizable_parameters > 0.98 * small.denoiser_parameters
    assert small.memory_bytes < 9 * 2**30
    eight = plan("sd15-am", "optimizer.name=adamw-8bit")
    assert plan("sd15-am").memory_bytes - eight.memory_bytes == 6 * eight.trained_parameters
    assert "33.7 GB" in plain.download
    with_t5, without = (plan("sd35-medium-lora", f"model.t5={value}") for value in ("true", "false"))
    assert "16.3 GB" in with_t5.download
    assert "6.74 GB" in without.download
    assert without.memory_bytes < 10 * 2**30
    assert "at least a GPU of 24 GB" in dict(without.lines())["memory"]
    assert "training.fsdp divides it" in dict(plan("sd35-medium-am", "training.ema_decay=0.9").lines())["memory"]
