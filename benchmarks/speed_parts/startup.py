"""From the command to the end of the first step, and what more processes cost: whole commands, in child processes."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SETS = (
    "evaluation.every=0", "tracking.mode=disabled", "optimizer.prompts_per_step=4", "optimizer.micro_batch=4",
)  # fmt: skip


#: What any script that trains a diffusers pipeline with accelerate has to import.
LIBRARIES = (
    "import accelerate; from diffusers import StableDiffusionPipeline, UNet2DConditionModel, AutoencoderKL; "
    "from transformers import CLIPTextModel, CLIPTokenizer"
)


def _environment() -> dict[str, str]:
    # A machine that forbids bytecode would make both measurements one.
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "OMP_NUM_THREADS": "1"}


def command(steps: int, *options: str, cache: Path | None = None) -> dict[str, float]:
    """Wall-clock and processor seconds of `amsd train shapes` with a small batch; `cache` holds the bytecode."""
    sets = [part for value in (*SETS, f"training.steps={steps}") for part in ("--set", value)]
    environment = _environment()
    if cache is not None:
        environment["PYTHONPYCACHEPREFIX"] = str(cache)
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["train", "shapes", "--output", f"{folder}/run", *sets, *options]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "amsd", *arguments], env=environment, capture_output=True, text=True, check=False
        )
        wall = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode != 0:
            raise RuntimeError(f"amsd {' '.join(arguments)} ended with {done.returncode}: {done.stderr[-500:]}")
        lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    step = next(line["seconds/total"] for line in lines if "seconds/total" in line)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "processor": processor, "first step": step}


def start_up() -> dict[str, Any]:
    """The command with one step, without and with bytecode, and the share of imports alone."""
    with tempfile.TemporaryDirectory() as cache:
        without = command(1, cache=Path(cache))
        found = [command(1, cache=Path(cache)) for _ in range(2)]
        with_bytecode = min(found, key=lambda values: values["processor"])
        imports = _imports(Path(cache))
    return {"without bytecode": without, "with bytecode": with_bytecode, "imports": imports}


def _imports(cache: Path) -> dict[str, float]:
    """Processor seconds of children that import torch alone, and the libraries of any training script."""
    found = {}
    for name, code in (("torch", "import torch"), ("the libraries", LIBRARIES)):
        environment = {**_environment(), "PYTHONPYCACHEPREFIX": str(cache)}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found[name] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return found


def processes() -> dict[str, float]:
    """Processor seconds of one more update, in all processes together: 4 updates against 1."""
    found = {}
    for count in (1, 2):
        one, four = (command(steps, "--processes", str(count))["processor"] for steps in (1, 4))
        found[str(count)] = (four - one) / 3
    return found
