"""Networks divided among processes: the losses of one process, and checkpoints for any number of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from diffusers import SD3Transformer2DModel

from amsd.errors import UsageError
from amsd.experiment.plan import make_plan
from amsd.recipe import load_recipe
from amsd.run_directory import RunDirectory
from tests import pipelines
from tests.cli.commands import finish, lines, start
from tests.cli.test_processes import assert_close, in_one, in_two

RECIPE = """
[model]
pretrained = "{model}"
max_sequence_length = 2

[schedule]
num_inference_steps = 5
shift_terminal = 0.2

[guidance]
guidance_scale = 1.0

[method]
reward_multiplier = 10.0
timesteps_per_trajectory = 1

[[reward]]
name = "brightness"

[prompts]
train = ["a red circle", "a big blue square", "two green triangles", "a small circle"]
evaluation = ["a small red square", "a yellow circle", "a big circle"]

[optimizer]
learning_rate = 1e-3
warmup_steps = 0
prompts_per_step = 6
micro_batch = 2

[training]
fsdp = true
steps = 3
checkpoint_every = 2
keep = 9
ema_decay = 0.5
validate_every = 1

[evaluation]
samples_per_prompt = 1
batch_size = 1

[tracking]
mode = "disabled"
"""
BUFFER = (
    "--set", "model.parameterization=offset", "--set", "method.name=buffer-am",
    "--set", "method.buffer={size = 12, passes = 2, min_ess = 0.1}",
    "--set", "prompts.dropout=0.3", "--set", "guidance.guidance_scale=2.0",
)  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion 3, whose rows leave the adjoint's batch at different steps on the two processes."""
    folder = tmp_path_factory.mktemp("sd3")
    pipelines.stable_diffusion_3(t5=False).save_pretrained(folder / "model")
    file = folder / "recipe.toml"
    file.write_text(RECIPE.format(model=folder / "model"), encoding="utf-8")
    return file


@pytest.mark.slow
@pytest.mark.parametrize("settings", [(), BUFFER], ids=["full", "offset from a buffer"])
def test_divided_networks_give_the_losses_of_one_process_and_go_on_in_one(
    recipe: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    """Losses, gradient norms, validation and evaluation; three evaluation images for two processes are uneven too."""
    in_one(recipe, tmp_path / "one", *settings)
    in_two(recipe, tmp_path / "two", *settings, "--set", "training.steps=2")
    in_one(recipe, tmp_path / "two", *settings, "--resume")
    assert_close(tmp_path / "one", tmp_path / "two")
    if not settings:
        written = RunDirectory(tmp_path / "two").checkpoint(2) / "transformer"
        network = SD3Transformer2DModel.from_pretrained(written)
        assert network.config["_class_name"] == "SD3Transformer2DModel"


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_in_two(tmp_path: Path) -> None:
    """Of FLUX, on pictures that are not square."""
    pipelines.flux().save_pretrained(tmp_path / "model")
    recipe = tmp_path / "recipe.toml"
    text = RECIPE.format(model=tmp_path / "model")
    recipe.write_text(text.replace("max_sequence_length = 2", "max_sequence_length = 4\nsize = [16, 24]"))
    in_one(recipe, tmp_path / "one")
    in_one(recipe, tmp_path / "run", "--set", "training.steps=2")
    in_two(recipe, tmp_path / "run", "--resume")
    assert_close(tmp_path / "one", tmp_path / "run")
    assert [line["step"] for line in lines(tmp_path / "run") if "loss" in line] == [1, 2, 3]


def test_shares_must_be_even(recipe: Path) -> None:
    with pytest.raises(UsageError, match=r"4 processes cannot share .*prompts_per_step = 6 evenly. Use 4 or 8"):
        make_plan(load_recipe(recipe), 4)
    undivided = load_recipe(recipe, ["training.fsdp=false"])
    assert make_plan(undivided, 4).memory_bytes == make_plan(undivided, 1).memory_bytes
    whole, halves = (make_plan(load_recipe(recipe), count) for count in (1, 2))
    assert whole.memory_bytes == make_plan(undivided, 1).memory_bytes
    # The base, and of what is trained: weights, gradients, two moments and the average.
    divided = 4 * (whole.denoiser_parameters + 5 * whole.trained_parameters)
    assert whole.memory_bytes - halves.memory_bytes == pytest.approx(divided / 2)


def test_what_cannot_be_divided_is_refused(recipe: Path) -> None:
    for setting in ("model.parameterization=lora", "model.precision=fp16"):
        with pytest.raises(UsageError, match=r"training\.fsdp"):
            load_recipe(recipe, [setting])


ACCELERATE = """
import copy, sys
from types import SimpleNamespace

import torch
import torch.distributed as dist
from accelerate.utils import fsdp2_prepare_model

from amsd.diffusion.held import compute_in
from amsd.diffusion.sharding import block_classes, sum_and_let_go
from amsd.experiment.fsdp import plugin
from amsd.recipe import load_recipe
from tests import pipelines

dist.init_process_group("gloo")

def compare(precision, dtype):
    settings = plugin(load_recipe("flow", ["training.fsdp=true", f"model.precision={precision}"]), cpu=False)
    mixed = "no" if precision == "fp32" else precision
    if mixed != "no":
        settings.set_mixed_precision(mixed)  # as accelerate's state does
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=settings), mixed_precision=mixed, is_main_process=False,
        device=torch.device("cpu"), torch_device_mesh=None,
    )
    network = pipelines.stable_diffusion_3(t5=False).transformer.requires_grad_(True)
    whole = compute_in(copy.deepcopy(network), dtype)
    settings.transformer_cls_names_to_wrap = block_classes(network)
    fsdp2_prepare_model(accelerator, network)
    sum_and_let_go(network)
    random = torch.Generator().manual_seed(0)
    given = {
        # bfloat16 has no 993: rounded, it would be another time
        "hidden_states": torch.randn(1, 16, 8, 8, generator=random).to(dtype), "timestep": torch.tensor([993.0]),
        "encoder_hidden_states": torch.randn(1, 5, 32, generator=random).to(dtype),
        "pooled_projections": torch.randn(1, 32, generator=random).to(dtype), "return_dict": False,
    }
    one, other = network(**given)[0], whole(**given)[0]
    torch.testing.assert_close(one, other)
    one.square().sum().backward()
    (dist.get_world_size() * other.square().sum()).backward()
    pairs = [
        (mine.grad.full_tensor(), theirs.grad.float())
        for mine, theirs in zip(network.parameters(), whole.parameters(), strict=True) if theirs.grad is not None
    ]
    for mine, theirs in pairs if precision == "fp32" else ():
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    mine, theirs = (torch.cat([one.flatten() for one in each]) for each in zip(*pairs))
    assert (mine - theirs).norm() < 0.01 * theirs.norm()  # the order of sums in bf16
    assert sum(type(module).__name__ == "FSDPJointTransformerBlock" for module in network.modules()) == 2

compare("fp32", torch.float32)
compare("bf16", torch.bfloat16)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_accelerate_divides_a_network_alike(tmp_path: Path) -> None:
    """What GPUs use: accelerate's own FSDP2, over gloo; gradients are sums over the processes."""
    script = tmp_path / "script.py"
    script.write_text(ACCELERATE, encoding="utf-8")
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    ended = finish(start(script, launcher=launcher))
    assert ended.returncode == 0, ended.stderr
