"""What tests of the command line share: a tiny model and its recipe on disk, and commands in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RECIPE = """
[model]
pretrained = "{model}"

[schedule]
num_inference_steps = 4

[method]
timesteps_per_trajectory = 2
reward_multiplier = 100.0

[[reward]]
name = "brightness"

[prompts]
train = ["a red circle", "a cat", "a big dog"]
evaluation = ["a blue square", "a tree"]

[optimizer]
learning_rate = 1e-3
prompts_per_step = 4
micro_batch = 2
warmup_steps = 1

[training]
steps = 8
checkpoint_every = 2
keep = 20

[evaluation]
samples_per_prompt = 2
diversity = ["pixels"]

[tracking]
mode = "disabled"
"""
TIMES = ("seconds/", "share/", "collection/", "performance/", "time")
AMSD = (sys.executable, "-m", "amsd")
ROOT = Path(__file__).parents[2]
PATIENCE = 300.0
#: What starts two processes on the CPU (`accelerate launch` with ACCELERATE_USE_CPU); amsd itself: --processes 2.
LAUNCHERS = {
    "amsd": (),
    "torchrun": (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "amsd"),
    "accelerate": (
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines",
        "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "amsd",
    ),
}  # fmt: skip


def write_recipe(folder: Path) -> Path:
    """A tiny Stable Diffusion with random weights, and a recipe for it; returns the recipe's path."""
    from tests import pipelines

    pipelines.stable_diffusion().save_pretrained(folder / "model")
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(model=folder / "model"), encoding="utf-8")
    return recipe


def start(*arguments: str | Path, launcher: tuple[str, ...] = AMSD, **environment: str) -> subprocess.Popen[str]:
    """A command in a process (and session) of its own, which finds the tests' modules and listens to Ctrl-C.

    Tests that are themselves run in the background of a script ignore it, and their children would inherit that.
    """
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        [*launcher, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": paths} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Wait for a command and collect what it said; one that does not end is killed and fails the test."""
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def amsd(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return finish(start(*arguments, **environment))


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], interval: float = 0.01) -> None:
    """Return at the moment a condition holds; the process must live until then."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the moment did not come"
        time.sleep(interval)


def lines(run: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` without times."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(TIMES)} for line in found]


def steps(run: Path) -> list[int]:
    """Optimizer steps that are logged, also while the file is being written."""
    file = run / "metrics.jsonl"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return [json.loads(line)["step"] for line in text.splitlines() if line.endswith("}") and '"loss"' in line]
