"""The embedded default model: a tiny but truly trained Stable-Diffusion pipeline on captioned shapes.

Importing this package costs nothing: torch is imported by the modules that need it.
"""

from pathlib import Path
from typing import Literal

_HERE = Path(__file__).parent


def pipeline_path() -> Path:
    """Folder that `StableDiffusionPipeline.from_pretrained` loads."""
    return _HERE / "weights"


def prompts_path(split: Literal["train", "evaluation"]) -> Path:
    """File of captions, one per line; the two splits share no caption."""
    if split not in ("train", "evaluation"):
        raise ValueError(f"no prompt split {split!r}; there are 'train' and 'evaluation'")
    return _HERE / "prompts" / f"{split}.txt"
