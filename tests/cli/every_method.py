"""Trainings with several methods, one after the other in the processes of one launch: `... RECIPE FOLDER METHOD...`."""

from __future__ import annotations

import sys

from amsd.cli.app import app

#: Six trajectories are three groups of two, and two processes of three each divide one of them.
SETTINGS = ("optimizer.prompts_per_step=6", "training.steps=2", "training.checkpoint_every=2", "evaluation.every=0",
            "training.validate_every=2")  # fmt: skip
GROUPED = ("ram", "ddpo")


def arguments(recipe: str, folder: str, method: str) -> list[str]:
    """Of `amsd`: a short training, where a method has groups with one that lies on both processes."""
    settings = [*SETTINGS, f"method.name={method}", *(["method.group_size=2"] if method in GROUPED else [])]
    options = [part for setting in settings for part in ("--set", setting)]
    return ["train", recipe, "--output", f"{folder}/{method}", *options]


if __name__ == "__main__":
    recipe, folder, *methods = sys.argv[1:]
    for name in methods:
        app(arguments(recipe, folder, name), standalone_mode=False)
