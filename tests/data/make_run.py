"""Writes the run of a release that later releases must still read: `python -m tests.data.make_run FOLDER`.

A tiny Stable Diffusion with random weights (equal seeds give equal weights, so it is not kept), trained for four steps
with Adjoint Matching from a buffer, LoRA of rank 1 and an average of the weights; a checkpoint every two steps, each
evaluated. It uses everything that a checkpoint can hold: optimizer, average, mask threshold, buffer, generators.
"""

from __future__ import annotations

import sys
from pathlib import Path

from amsd.experiment.train import train
from amsd.recipe import Recipe, from_dict
from tests import pipelines

STEPS = 4


def write_model(folder: Path) -> None:
    """The base model of the run."""
    pipelines.stable_diffusion(seed=7, scheduler=pipelines.ddim()).save_pretrained(folder)


def recipe(model: Path) -> Recipe:
    """The recipe of the run; `model` is where its base model lies."""
    return from_dict(
        {
            "model": {"pretrained": str(model), "parameterization": "lora", "lora": {"rank": 1, "targets": ["to_v"]}},
            "schedule": {"num_inference_steps": 4},
            "guidance": {"guidance_scale": 2.0},
            "method": {
                "name": "buffer-am", "timesteps_per_trajectory": 1, "reward_multiplier": 100.0,
                "buffer": {"size": 4, "passes": 3, "min_ess": 0.1},
            },
            "reward": [{"name": "brightness"}],
            "prompts": {"train": ["a red circle", "a cat", "a big dog"], "evaluation": ["a blue square", "a tree"]},
            "optimizer": {"learning_rate": 1e-3, "prompts_per_step": 2, "micro_batch": 2, "warmup_steps": 1},
            "training": {"steps": STEPS, "checkpoint_every": 2, "keep": 2, "ema_decay": 0.9},
            "evaluation": {"samples_per_prompt": 2, "diversity": ["pixels"], "images": 1},
            "tracking": {"mode": "disabled"},
        }
    )  # fmt: skip


def main() -> None:
    """Train, and delete what is of no use later: the model, which `write_model` writes again."""
    folder = Path(sys.argv[1])
    write_model(folder / "model")
    train(recipe(folder / "model"), folder / "run")


if __name__ == "__main__":
    main()
