"""A trainer's state beside the weights in a checkpoint's `state/`: everything that makes a resumed run the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from amsd.diffusion.sharding import gathered, placed
from amsd.training import processes
from amsd.training.method import Method
from amsd.training.state import load_optimizer, restore_rng, rng_state, save_optimizer
from amsd.training.update import Updater


def save_training(method: Method[Any], updater: Updater, step: int, folder: Path) -> None:
    """Write the state after `step`: each process its generators and its buffer, the main process whole tensors."""
    from safetensors.torch import save_file

    method.source.save(folder)
    (folder / f"rng-{processes.rank():05d}.json").write_text(json.dumps(rng_state()), encoding="utf-8")
    save_optimizer(updater.optimizer.optimizer, folder)
    state: dict[str, Any] = {**method.state(), "step": step, "skipped_in_a_row": updater.guard.in_a_row}
    files = {"method": gathered(method.state_tensors())}
    if updater.average is not None:
        # The denoiser's folder or the adapter file holds the average, so the trained values themselves go here.
        trainable = method.problem.policy.trainable
        files["parameters"] = gathered(trainable)
        files["average"] = gathered(dict(zip(trainable, updater.average.shadow, strict=True)))
        state["average_updates"] = updater.average.updates
    if processes.rank() != 0:
        return
    for name, tensors in files.items():
        if tensors:
            save_file(tensors, folder / f"{name}.safetensors")
    scaler = getattr(updater.accelerator, "scaler", None)
    if scaler is not None:
        state["scaler"] = scaler.state_dict()
    (folder / "trainer.json").write_text(json.dumps(state), encoding="utf-8")


def load_training(method: Method[Any], updater: Updater, folder: Path) -> int:
    """Read what `save_training` wrote, and return its step; the policy has its weights already."""
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
