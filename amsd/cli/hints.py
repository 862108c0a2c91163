"""Answers to the reference implementation's options: what takes their place here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from typer.core import TyperGroup

from amsd.errors import UsageError, on_command_line

_PAGE = "docs/coming-from-the-reference.md maps every option and key."
#: Options of the reference's `train.py` and `evaluate_checkpoint.py`, with what amsd has instead.
OPTIONS = {
    "--config": "name a recipe: amsd train sd15-am (its multi_prompt.yaml), or --recipe for amsd eval",
    "--lr": "--set optimizer.learning_rate=VALUE",
    "--batch_size": "--set optimizer.prompts_per_step=VALUE (global), and optimizer.micro_batch for memory",
    "--precision": "--set model.precision=fp32, bf16 or fp16",
    "--wandb_project": "--set tracking.project=NAME",
    "--resume_from_checkpoint": "--output RUN --resume",
    "--seed": "--set training.seed=VALUE",
    "--save_dir": "--output DIR",
    "--verbose": "amsd --debug COMMAND ...",
    "--use_buffer": "--set method.name=buffer-am",
    "--ckpt": "name the checkpoint, the run or `base`: amsd eval RUN",
    "--eta": "--set evaluation.eta=[VALUE]",
    "--guidance_scale": "--set evaluation.guidance_scale=VALUE (evaluation), guidance.guidance_scale (training)",
    "--beta_start": "--set schedule.beta_start=VALUE, or evaluation.scheduler for the scheduler of an evaluation",
    "--beta_end": "--set schedule.beta_end=VALUE, or evaluation.scheduler for the scheduler of an evaluation",
    "--timestep_spacing": "--set schedule.timestep_spacing=NAME",
    "--num_samples_per_prompt": "--set evaluation.samples_per_prompt=VALUE",
    "--device": "CUDA_VISIBLE_DEVICES chooses the GPU, ACCELERATE_USE_CPU=true the CPU",
}
_COMMANDS = ("train", "eval")


def answer(arguments: Sequence[str]) -> str | None:
    """What to type instead of these arguments; None where nothing comes from the reference."""
    command = next((word for word in arguments if not word.startswith("-")), "")
    if command not in _COMMANDS:
        return None
    for word in arguments[arguments.index(command) + 1 :]:
        option = word.partition("=")[0]
        if option in OPTIONS:
            return f"{option} is an option of the reference implementation. Here: {OPTIONS[option]}. {_PAGE}"
        if word == "base_model":
            return "The base model is called `base` here: amsd eval base --recipe sd15-am."
        if PurePath(word).suffix in (".yaml", ".yml"):
            return f"{word}: recipes are TOML files here, and the reference's are sd15-am, sd15-buffer-am. {_PAGE}"
    return None


class Commands(TyperGroup):
    """The commands of amsd; answers options of the reference before they become `No such option`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Split the command line.

        Raises:
            UsageError: an option, an argument or a file of the reference implementation.
        """
        hint = answer(args)
        if hint is not None:
            raise UsageError(hint)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with on_command_line():
            return super().invoke(ctx)
