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
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from amsd.diffusion.adapters import adapter_for
from amsd.diffusion.parameterizations import build_policy
from amsd.experiment.setup import build_accelerator, build_problem
from amsd.files import write_text
from amsd.recipe import Recipe, dump_toml, from_dict
from amsd.run_directory import RunDirectory
from amsd.shapes import pipeline_path
from amsd.training.adjoint_matching import TRAINERS
from amsd.training.events import CheckpointRecord, Notice, StepRecord

PROMPTS = ["a red circle", "a blue square"]


class Last:
    """Keeps the newest step's values."""

    def __init__(self) -> None:
        self.values: Mapping[str, float] = {}

    def on_phase(self, phase: str, step: int) -> None:
        print(f"step {step}: {phase}", file=sys.stderr, flush=True)

    def on_step(self, record: StepRecord) -> None:
        self.values = record.values

    def on_checkpoint(self, record: CheckpointRecord) -> None:
        pass

    def on_notice(self, notice: Notice) -> None:
        print(notice.text, file=sys.stderr)


def random_pipeline() -> StableDiffusionPipeline:
    """The published configuration of every network; the tokenizer alone is a small one."""
    tokenizer = CLIPTokenizer.from_pretrained(pipeline_path() / "tokenizer", model_max_length=77)
    text = CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=77, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, scheduler=scheduler,
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def recipe(arguments: argparse.Namespace) -> Recipe:
    loss_steps = min(arguments.loss_steps, arguments.inference_steps - 1)
    return from_dict(
        {
            "model": {"parameterization": arguments.parameterization, "precision": arguments.precision},
            "schedule": {"num_inference_steps": arguments.inference_steps},
            "guidance": {"guidance_scale": arguments.guidance_scale},
            "method": {"timesteps_per_trajectory": loss_steps},
            "reward": [{"name": "brightness"}],
            "prompts": {"train": PROMPTS, "evaluation": PROMPTS},
            "optimizer": {"prompts_per_step": arguments.batch, "micro_batch": arguments.batch, "warmup_steps": 0},
            "training": {
                "steps": arguments.steps,
                "checkpoint_every": arguments.steps,
                "gradient_checkpointing": not arguments.no_checkpointing,
            },
            "evaluation": {"every": 0},
            "tracking": {"mode": "disabled"},
        }
    )


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    chosen = recipe(arguments)
    accelerator = build_accelerator(chosen)
    torch.manual_seed(0)
    policy = build_policy(adapter_for(random_pipeline()), chosen.model)
    policy.to(accelerator.device)
    problem = build_problem(chosen, accelerator, policy, PROMPTS)
    last = Last()
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder))
        write_text(run.recipe, dump_toml(chosen))  # every checkpoint takes a copy
        TRAINERS["am"](problem, run, PROMPTS, accelerator, [last]).fit()
    cuda = accelerator.device.type == "cuda"
    unit = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads",
        **vars(arguments),
        "unet_parameters": sum(p.numel() for n, p in policy.pipeline.unet.named_parameters() if "lora_" not in n),
        "trained_parameters": sum(parameter.numel() for parameter in policy.trainable.values()),
        "latent_shape": list(policy.adapter.latent_shape),
        "peak_memory_gib": round(peak / 2**30, 2),
        "values": {
            name: round(value, 4)
            for name, value in last.values.items()
            if name.startswith("seconds/") or name in ("images_per_second", "loss", "reward/mean", "gradient_norm")
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
