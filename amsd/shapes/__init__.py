"""The embedded models: tiny but truly trained pipelines on captioned shapes.

`shapes` is a Stable Diffusion pipeline (UNet), `shapes-flow` a Stable Diffusion 3 pipeline (flow matching).

Importing this package costs nothing: torch is imported by the modules that need it.
"""

from pathlib import Path
from typing import Literal

_HERE = Path(__file__).parent


MODELS = {"shapes": "weights", "shapes-flow": "flow"}
"""Folder of each embedded model; a recipe names it `embedded:NAME`."""


def pipeline_path(name: str = "shapes") -> Path:
    """Folder that diffusers loads an embedded model from.

    Raises:
        KeyError: there is no such model.
    """
    return _HERE / MODELS[name]


def prompts_path(split: Literal["train", "evaluation"]) -> Path:
    """File of captions, one per line; the two splits share no caption."""
    if split not in ("train", "evaluation"):
        raise ValueError(f"no prompt split {split!r}; there are 'train' and 'evaluation'")
    return _HERE / "prompts" / f"{split}.txt"
