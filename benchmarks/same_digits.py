"""Does an older commit train the same weights, bit for bit? `python benchmarks/same_digits.py COMMIT RECIPE`.

Both train RECIPE with the same seed and this environment's packages, without evaluation, the older one in a git
worktree of its own. Compared are the trained tensors of the last checkpoint, and the logged values but for times and
memory. `--now` sets keys of the newer one only: those whose default has changed since, such as
`method.outlier_threshold=current`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).parents[1]
MEASURED = ("time", "seconds", "share", "performance", "images_per_second", "memory", "collection/")
"""Beginnings of the logged names that no seed determines."""
UNMERGED = """
import amsd.diffusion.parameterizations as parameterizations
parameterizations.LoraPolicy._new_copy = lambda self: None
"""
"""Rollouts with the adapters beside the weights, as before a copy for passes without gradients had them merged."""


def train(tree: Path, run: Path, recipe: str, sets: list[str], before: str = "") -> None:
    """Train in a process of its own that imports amsd from `tree`, after running the code `before`."""
    options = [word for each in ["training.seed=0", "evaluation.every=0", *sets] for word in ("--set", each)]
    code = f"{before}\nfrom amsd.cli import main\nmain()"
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    command = [sys.executable, "-c", code, "train", recipe, "--output", str(run), *options]
    subprocess.run(command, check=True, env=environment, cwd=run.parent, stdout=sys.stderr)


def weights(run: Path) -> dict[str, Any]:
    """Trained tensors of the last checkpoint, by file and name."""
    from safetensors.numpy import load_file

    folder = run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()
    files = [*folder.glob("adapter_model.safetensors"), *folder.glob("*/diffusion_pytorch_model*.safetensors")]
    return {f"{file.name}:{name}": value for file in files for name, value in load_file(file).items()}


def logged(run: Path) -> dict[tuple[int, str], float]:
    """Values of every step that a seed determines, by step and name."""
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    steps: list[Mapping[str, Any]] = [line for line in lines if "loss" in line]
    return {
        (line["step"], name): value for line in steps for name, value in line.items() if not name.startswith(MEASURED)
    }


def main(
    commit: Annotated[str, typer.Argument(help="The older commit.")],
    recipe: Annotated[str, typer.Argument(help="Recipe that both know by name.")],
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="Keys for both; training.steps=2 is the shortest run.")
    ] = None,
    now: Annotated[list[str] | None, typer.Option(help="Keys for the newer one only.")] = None,
    unmerged: Annotated[bool, typer.Option(help="Whether the newer one's rollouts keep LoRA adapters apart.")] = False,
) -> None:
    """Train twice and compare; exit code 1 where anything differs."""
    import numpy as np

    with tempfile.TemporaryDirectory() as place:
        older, old, new = Path(place) / "tree", Path(place) / "old", Path(place) / "new"
        subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "-q", "--detach", str(older), commit], check=True)
        try:
            train(older, old, recipe, sets or [])
        finally:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(older)], check=True)
        train(ROOT, new, recipe, [*(sets or []), *(now or [])], UNMERGED if unmerged else "")
        before, after = weights(old), weights(new)
        same = [name for name in before if name in after and np.array_equal(before[name], after[name])]
        lines, others = logged(old), logged(new)
        differing = [key for key in lines.keys() & others.keys() if lines[key] != others[key]]
    typer.echo(f"{len(same)} of {len(before)} tensors are equal to the bit")
    typer.echo(
        f"{len(lines.keys() & others.keys()) - len(differing)} of {len(lines)} logged values are equal to the digit"
    )
    if differing:
        step, name = min(differing)
        typer.echo(f"first difference: step {step}, {name}: {lines[step, name]!r}, now {others[step, name]!r}")
    raise typer.Exit(int(len(same) < len(before) or bool(differing)))


if __name__ == "__main__":
    typer.run(main)
