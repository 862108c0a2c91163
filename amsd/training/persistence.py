"""A trainer's state beside the weights in a checkpoint's `state/`: everything that makes a resumed run the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from amsd.diffusion.sharding import gathered, placed
from amsd.files import Writes
from amsd.recipe import Recipe
from amsd.training import processes
from amsd.training.method import Method
from amsd.training.state import load_optimizer, optimizer_as_it_is, restore_rng, rng_state
from amsd.training.update import Updater


def moment_bytes(recipe: Recipe) -> int:
    """Bytes of the optimizer's two moments per trained parameter."""
    return 8 if recipe.optimizer.name == "adamw" else 2


def checkpoint_bytes(recipe: Recipe, trained: int) -> float:
    """Size of a checkpoint of `trained` parameters: weights in float32 and moments; a buffer comes on top."""
    copies = 1 if recipe.training.ema_decay is None else 3  # the average, and the trained weights beside it
    return float(trained * (4 * copies + moment_bytes(recipe)))


def training_as_it_is(method: Method[Any], updater: Updater, step: int) -> Writes:
    """What writes the state after `step`: each process its generators and buffer, the main process whole tensors."""
    from safetensors.torch import save_file

    source = method.source.as_it_is()
    texts = {f"rng-{processes.rank():05d}.json": json.dumps(rng_state())}
    optimizer = optimizer_as_it_is(updater.optimizer.optimizer)
    state: dict[str, Any] = {**method.state(), "step": step, "skipped_in_a_row": updater.guard.in_a_row}
    files = {"method": gathered(method.state_tensors())}
    if updater.average is not None:
        # The denoiser's folder or the adapter file holds the average, so the trained values themselves go here.
        trainable = method.problem.policy.trainable
        files["parameters"] = gathered(trainable)
        files["average"] = gathered(dict(zip(trainable, updater.average.shadow, strict=True)))
        state["average_updates"] = updater.average.updates
    scaler = getattr(updater.accelerator, "scaler", None)
    if scaler is not None:
        state["scaler"] = scaler.state_dict()
    if processes.rank() == 0:
        texts["trainer.json"] = json.dumps(state)

    def write(folder: Path) -> None:
        source(folder)
        optimizer(folder)
        for name, tensors in files.items():
            if tensors:  # on the main process
                save_file(tensors, folder / f"{name}.safetensors")
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")

    return write


def load_training(method: Method[Any], updater: Updater, folder: Path) -> int:
    """Read what `training_as_it_is` wrote, and return its step; the policy has its weights already."""
    from safetensors.torch import load_file

    state = json.loads((folder / "trainer.json").read_text(encoding="utf-8"))
    updater.guard.in_a_row = state.get("skipped_in_a_row", 0)
    load_optimizer(updater.optimizer.optimizer, folder)
    if updater.average is not None:
        trained, shadow = load_file(folder / "parameters.safetensors"), load_file(folder / "average.safetensors")
        for name, parameter in method.problem.policy.trainable.items():
            parameter.detach().copy_(placed(trained[name], parameter))
        updater.average.restore([shadow[name] for name in method.problem.policy.trainable], state["average_updates"])
    tensors = folder / "method.safetensors"
    method.restore(state, load_file(tensors) if tensors.is_file() else {})
    if "scaler" in state and updater.accelerator.scaler is not None:
        updater.accelerator.scaler.load_state_dict(state["scaler"])
    method.source.restore(folder, method.problem.encode)
    own = folder / f"rng-{processes.rank():05d}.json"
    if own.is_file():
        restore_rng(json.loads(own.read_text(encoding="utf-8")))
    return int(state["step"])
