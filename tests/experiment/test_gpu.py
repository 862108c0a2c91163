"""Whole runs of the embedded models on a CUDA card; `benchmarks/gpu.py` runs them where there is one."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from amsd.experiment.train import train
from amsd.recipe import load_recipe
from amsd.recipe.methods import METHODS

pytestmark = pytest.mark.gpu

SHORT = (
    "training.checkpoint_every=2", "tracking.mode=disabled", "optimizer.prompts_per_step=8", "optimizer.micro_batch=4",
    "evaluation.prompts=4", "evaluation.samples_per_prompt=2",
)  # fmt: skip
LORA = ("model.parameterization=lora",)
MODES: dict[str, Sequence[str]] = {
    "fp32": ("training.tf32=false",),
    "tf32": (),
    "bf16": ("model.precision=bf16",),
    "fp16": ("model.precision=fp16",),
    "lora": ("model.precision=bf16", *LORA),
    "lora, fp16": ("model.precision=fp16", *LORA),
    "offset": ("model.precision=bf16", "model.parameterization=offset"),
    "checkpointing": ("model.precision=bf16", "training.gradient_checkpointing=true"),
    "guided": (
        "guidance.guidance_scale=5.0", "guidance.guidance_in_adjoint_computation=true",
        "guidance.guidance_in_control_computation=true",
    ),
    "fitted": ("optimizer.micro_batch=auto", "training.collection_batch=auto", "evaluation.batch_size=auto"),
    "averaged": ("training.ema_decay=0.9", "prompts.dropout=0.3"),
}  # fmt: skip
BUFFERS: dict[str, Sequence[str]] = {
    "pinned": ("method.buffer.size=8",),
    "on the card": ("method.buffer.size=8", "method.buffer.device=accelerator", "method.buffer.dtype=bf16"),
    "passes": ("method.buffer.size=16", "method.buffer.passes=2", "model.precision=bf16"),
}


def run(
    folder: Path, *sets: str, recipe: str = "shapes", steps: int = 2, every: int = 0, resume: bool = False
) -> list[dict[str, Any]]:  # fmt: skip
    """Train, and give the logged values of each step."""
    AcceleratorState._reset_state(reset_partial_state=True)  # as a process of its own would begin
    asked = [*SHORT, f"training.steps={steps}", f"evaluation.every={every}", *sets]
    train(load_recipe(recipe, asked), folder, resume=resume)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def check(steps: Sequence[dict[str, Any]], count: int) -> None:
    assert len(steps) == count
    assert all(math.isfinite(step["loss"]) for step in steps)


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("recipe", ["shapes", "flow"])
def test_every_mode_trains(recipe: str, name: str, tmp_path: Path) -> None:
    check(run(tmp_path / "run", *MODES[name], recipe=recipe), 2)


@pytest.mark.parametrize("name", BUFFERS)
def test_every_buffer_trains(name: str, tmp_path: Path) -> None:
    check(run(tmp_path / "run", *BUFFERS[name], recipe="shapes-buffer", steps=3), 3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("recipe", ["shapes", "flow"])
def test_every_method_trains_in_bf16(recipe: str, method: str, tmp_path: Path) -> None:
    check(run(tmp_path / "run", f"method.name={method}", "model.precision=bf16", recipe=recipe), 2)


def test_a_run_with_compiled_networks_trains(tmp_path: Path) -> None:
    check(run(tmp_path / "run", "training.compile=true"), 2)


@pytest.mark.parametrize("sets", [(), ("model.precision=bf16",), ("model.precision=fp16",), LORA])
def test_a_resumed_run_is_the_straight_one_bit_for_bit(sets: tuple[str, ...], tmp_path: Path) -> None:
    same = (*sets, "training.deterministic=true", "training.collection_batch=8")
    run(tmp_path / "run", *same, every=1)
    resumed = run(tmp_path / "run", *same, every=1, steps=4, resume=True)
    straight = run(tmp_path / "straight", *same, steps=4)
    check(resumed, 4)
    for name in ("loss", "reward/mean", "kl"):
        assert [step[name] for step in resumed] == [step[name] for step in straight]


def test_a_checkpoint_is_evaluated_against_the_base(tmp_path: Path) -> None:
    run(tmp_path / "run", "model.precision=bf16", every=1)
    results = list((tmp_path / "run").glob("checkpoints/*/evaluation/*.json"))
    assert results
    for file in results:
        metrics = json.loads(file.read_text())["metrics"]
        assert metrics
        assert all(math.isfinite(metric["mean"]) for metric in metrics.values())
