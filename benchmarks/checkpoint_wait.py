"""How long training waits for its checkpoints: written while it goes on, and while it waits.

    PYTHONPATH=. python benchmarks/checkpoint_wait.py --width 128     # 137 million weights, about 6 GiB of memory

A UNet of Stable Diffusion's architecture with random weights and AdamW's moments; `--width 320` is its own size. Both
ways take turns.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from workbench import StepTimer, random_pipeline, recipe_of, set_up, trainer_of

STEPS, EVERY = 9, 3


class Waits(StepTimer):
    """Keeps what each step waited; checkpoints are wanted."""

    def on_checkpoint(self, record: Any) -> None:
        """Kept by the run."""


def measure(width: int, parameterization: str, background: bool) -> dict[str, float]:
    """Seconds that training waits for one checkpoint, and of the whole run; GiB of a checkpoint."""
    pipeline = random_pipeline(tiny=True)
    pipeline.unet = UNet2DConditionModel(
        sample_size=8,
        cross_attention_dim=64,
        attention_head_dim=8,
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
    ).eval()
    recipe = recipe_of(
        {
            "model": {"parameterization": parameterization}, "schedule": {"num_inference_steps": 4},
            "guidance": {"guidance_scale": 1.0}, "method": {"timesteps_per_trajectory": 2},
            "optimizer": {"prompts_per_step": 4, "micro_batch": 4, "warmup_steps": 0},
            "training": {"steps": STEPS, "checkpoint_every": EVERY, "keep": 1, "background_checkpoints": background},
        }
    )  # fmt: skip
    problem, accelerator = set_up(recipe, pipeline, torch.device("cpu"))
    listener = Waits(STEPS + 1)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(problem, accelerator, [listener], Path(folder))
        began = time.perf_counter()
        trainer.fit()
        whole = time.perf_counter() - began
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files) / 2**30
    after = range(EVERY, STEPS, EVERY)  # the wait for a checkpoint is counted in the step after it
    waits = [listener.values[step]["seconds/checkpoint"] for step in after]
    return {"wait": sum(waits) / len(waits), "run": whole, "GiB": size}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    found = parser.parse_args()
    print("| trained | a checkpoint | written | training waits for one | run |\n|---|---|---|---|---|")
    for parameterization in ("full", "lora"):
        rounds = [
            {way: measure(found.width, parameterization, way) for way in (False, True)} for _ in range(found.rounds)
        ]
        for way, name in ((False, "while training waits"), (True, "while it goes on")):
            row = {key: median(each[way][key] for each in rounds) for key in rounds[0][way]}
            print(
                f"| {parameterization} | {row['GiB']:.2f} GiB | {name} | {row['wait']:.2f} s | {row['run']:.1f} s |",
                flush=True,
            )


if __name__ == "__main__":
    main()
