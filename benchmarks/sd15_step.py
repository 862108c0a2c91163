"""Time and memory of training steps at Stable Diffusion 1.5's true size, with random weights: nothing is downloaded.

    python benchmarks/sd15_step.py                                  # CPU: LoRA, one step, 3 inference steps, batch 1
    python benchmarks/sd15_step.py --parameterization full --precision bf16 --inference-steps 50 --batch 5 --steps 3

Prints one JSON object: seconds per phase, images per second (of the last step) and peak memory. The reward is the
images' brightness, so a scorer's own cost comes on top.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from typing import Any

import torch
import workbench

from amsd.recipe import Recipe


def recipe(arguments: argparse.Namespace) -> Recipe:
    """What was asked for; one more step than is timed, so that nothing is saved."""
    return workbench.recipe_of(
        {
            "model": {"parameterization": arguments.parameterization, "precision": arguments.precision},
            "schedule": {"num_inference_steps": arguments.inference_steps},
            "guidance": {"guidance_scale": arguments.guidance_scale},
            "method": {"timesteps_per_trajectory": min(arguments.loss_steps, arguments.inference_steps - 1)},
            "optimizer": {"prompts_per_step": arguments.batch, "micro_batch": arguments.batch},
            "training": {
                "steps": arguments.steps + 1,
                "checkpoint_every": arguments.steps + 1,
                "gradient_checkpointing": not arguments.no_checkpointing,
            },
        }
    )


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    problem, accelerator = workbench.set_up(
        recipe(arguments), workbench.random_pipeline(), torch.device("cuda" if cuda else "cpu")
    )
    tell = workbench.StepTimer(
        arguments.steps, on_begin=lambda phase, step: print(f"step {step}: {phase}", file=sys.stderr, flush=True)
    )
    last = workbench.run_steps(problem, accelerator, tell).values[-1]
    policy = problem.policy
    unit = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads",
        **vars(arguments),
        "unet_parameters": sum(p.numel() for n, p in policy.pipeline.unet.named_parameters() if "lora_" not in n),
        "trained_parameters": sum(parameter.numel() for parameter in policy.trainable.values()),
        "latent_shape": list(policy.family.latent_shape),
        "peak_memory_gib": round(peak / 2**30, 2),
        "values": {
            name: round(value, 4)
            for name, value in last.items()
            if name.startswith("seconds/")
            or name in ("performance/images_per_second", "loss", "reward/mean", "gradient_norm")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameterization", choices=["lora", "full", "offset"], default="lora")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--inference-steps", type=int, default=3)
    parser.add_argument("--loss-steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--guidance-scale", type=float, default=7.5)
    parser.add_argument("--no-checkpointing", action="store_true", help="no gradient checkpointing")
    print(json.dumps(measure(parser.parse_args()), indent=1))


if __name__ == "__main__":
    main()
