"""Does amsd run at all: the embedded model in every mode, resume, the CPU against the card, the tests marked `gpu`."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import workbench

from gpu_check.record import Check

SHORT = (
    "training.checkpoint_every=2", "tracking.mode=disabled", "optimizer.prompts_per_step=8", "optimizer.micro_batch=4",
    "method.buffer.size=8", "evaluation.prompts=4", "evaluation.samples_per_prompt=2",
)  # fmt: skip
GUIDED = (
    "guidance.guidance_scale=5.0", "guidance.guidance_in_adjoint_computation=true",
    "guidance.guidance_in_control_computation=true", "training.gradient_checkpointing=true",
)  # fmt: skip
BF16 = "model.precision=bf16"
CASES: dict[str, tuple[str, ...]] = {
    "fp32": ("training.tf32=false",),
    "lora bf16": (BF16, "model.parameterization=lora"),
    "bf16": (BF16,),
}
CARD_CASES: dict[str, tuple[str, ...]] = {
    "tf32": (),
    "fp16": ("model.precision=fp16",),
    "offset bf16": (BF16, "model.parameterization=offset"),
    "guided, all flags, checkpointing": GUIDED,
    "ema, dropout, smoothing": (
        "training.ema_decay=0.9", "prompts.dropout=0.3", "method.smoothing.samples=2",
        "method.smoothing.noise_std=0.01",
    ),
}  # fmt: skip
BUFFERS: dict[str, tuple[str, ...]] = {
    "buffer in pinned memory": (),
    "buffer on the card, bf16": ("method.buffer.device=accelerator", "method.buffer.dtype=bf16"),
}


def train_embedded(
    *sets: str, recipe: str = "shapes", steps: int = 2, evaluate: bool = False, folder: Path | None = None,
    resume: bool = False,
) -> tuple[dict[str, Any], Path]:  # fmt: skip
    """A short run of the embedded model, as `amsd train` makes it; its figures and its folder."""
    from accelerate.state import AcceleratorState

    from amsd.experiment.train import train
    from amsd.recipe import load_recipe

    AcceleratorState._reset_state(reset_partial_state=True)  # one precision per process otherwise
    asked = [*SHORT, f"training.steps={steps}", f"evaluation.every={int(evaluate)}", *sets]
    folder = folder or Path(tempfile.mkdtemp()) / "run"
    start = time.perf_counter()
    train(load_recipe(recipe, asked), folder, resume=resume)
    took = time.perf_counter() - start
    steps_logged = [line for line in _lines(folder) if "loss" in line]
    first, last = steps_logged[0], steps_logged[-1]
    found = {"s": round(took, 1), "loss": first["loss"], "reward": first["reward/mean"], "kl2": last.get("kl")}
    return {**found, "batch": last.get("collection/batch")}, folder


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def smoke(check: Check) -> None:
    """Every mode for two steps; a buffer for three; evaluation, and a resumed run against a straight one."""
    for name, sets in {**CASES, **(CARD_CASES if check.cuda else {})}.items():
        check.attempt("smoke", lambda: _short(check, name, "shapes", sets, 2), case=name)  # noqa: B023
    for name, sets in BUFFERS.items():
        check.attempt("smoke", lambda: _short(check, name, "shapes-buffer", sets, 3), case=name)  # noqa: B023
    check.attempt("smoke", lambda: _resume(check), case="evaluation and resume")


def _short(check: Check, name: str, recipe: str, sets: tuple[str, ...], steps: int) -> None:
    found, _ = train_embedded(*sets, recipe=recipe, steps=steps)
    check.say("smoke", case=name, **found)


def _resume(check: Check) -> None:
    _, folder = train_embedded(evaluate=True)
    again, _ = train_embedded(steps=4, folder=folder, resume=True, evaluate=True)
    straight, _ = train_embedded(steps=4)
    check.say(
        "smoke", case="evaluation and resume", **again, resumed_kl=again["kl2"], straight_kl=straight["kl2"],
        bit_identical=again["kl2"] == straight["kl2"],
        evaluations=len(list(folder.glob("checkpoints/*/evaluation/*.json"))),
    )  # fmt: skip


def agreement(check: Check) -> None:
    """One collection on the CPU and on the card in plain fp32: all noise is drawn on the CPU, so they must agree."""
    from amsd.diffusion.loading import load_family
    from amsd.recipe import load_recipe

    recipe = load_recipe("shapes", ["training.tf32=false", "guidance.guidance_scale=3.0"])
    found: dict[str, dict[str, torch.Tensor]] = {}
    for place in ("cpu", check.options.device):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        pipeline = load_family(recipe.model).pipeline
        problem, accelerator = workbench.set_up(recipe, pipeline, torch.device(place))
        experience = workbench.collect_once(problem, accelerator, 4)
        values = {field.name: getattr(experience, field.name) for field in dataclasses.fields(experience)}
        found["cpu" if not found else "card"] = {
            name: value.double().cpu()
            for name, value in values.items()
            if isinstance(value, torch.Tensor) and value.is_floating_point()
        }
    errors = {name: float((found["card"][name] - value).norm() / value.norm()) for name, value in found["cpu"].items()}
    check.say("agreement", relative_error=errors)


class GpuTests:
    """The tests marked `gpu`, run beside the parts that come next."""

    def __init__(self, check: Check) -> None:
        self.check, self.log = check, check.out / "pytest.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if not self.check.options.pytest_seconds or not Path("tests").is_dir():
            return
        where = "tests" if self.check.cuda else "tests/rewards/test_simple.py"
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-m", "gpu", "-p", "no:cacheprovider", where]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def finish(self) -> None:
        if self.process is None:
            return
        reserve = 350 if self.check.cuda else 0
        limit = max(1.0, min(self.check.options.pytest_seconds, self.check.left - reserve))
        rc: int | str
        try:
            rc = self.process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            rc = "stopped: out of time"
        self.check.say("pytest", rc=rc, tail=self.log.read_text()[-600:])
