"""Networks divided among processes: the losses of one process, and checkpoints for any number of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from diffusers import SD3Transformer2DModel

from amsd.errors import UsageError
from amsd.experiment.plan import make_plan
from amsd.recipe import load_recipe
from amsd.run_directory import RunDirectory
from tests import pipelines
from tests.cli.commands import lines
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
def test_a_run_of_one_process_goes_on_in_two(recipe: Path, tmp_path: Path) -> None:
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
