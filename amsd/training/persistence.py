"""A trainer's state beside the weights in a checkpoint's `state/`: everything that makes a resumed run the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amsd.training import processes
from amsd.training.state import load_optimizer, restore_rng, rng_state, save_optimizer

if TYPE_CHECKING:
    from amsd.training.trainer import SOCTrainer


def save_training(trainer: SOCTrainer[Any], folder: Path) -> None:
    """Write the state: each process its generators and its buffer, the main process the rest."""
    from safetensors.torch import save_file

    trainer.source.save(folder)
    (folder / f"rng-{processes.rank():05d}.json").write_text(json.dumps(rng_state()), encoding="utf-8")
    if processes.rank() != 0:
        return
    save_optimizer(trainer.optimizer.optimizer, folder)
    state: dict[str, Any] = {**trainer.state(), "step": trainer.step, "skipped_in_a_row": trainer.guard.in_a_row}
    tensors = {name: value.detach().cpu().contiguous() for name, value in trainer.state_tensors().items()}
    if tensors:
        save_file(tensors, folder / "method.safetensors")
    if trainer.average is not None:
        # `unet/` or the adapter file holds the average, so the trained values themselves go here.
        trainable = trainer.problem.policy.trainable
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in trainable.items()},
            folder / "parameters.safetensors",
        )
        shadow = dict(zip(trainable, (value.cpu().contiguous() for value in trainer.average.shadow), strict=True))
        save_file(shadow, folder / "average.safetensors")
        state["average_updates"] = trainer.average.updates
    scaler = getattr(trainer.accelerator, "scaler", None)
    if scaler is not None:
        state["scaler"] = scaler.state_dict()
    (folder / "trainer.json").write_text(json.dumps(state), encoding="utf-8")


def load_training(trainer: SOCTrainer[Any], folder: Path) -> None:
    """Read what `save_training` wrote; the policy has its weights already."""
    from safetensors.torch import load_file

    state = json.loads((folder / "trainer.json").read_text(encoding="utf-8"))
    trainer.step = state["step"]
    trainer.guard.in_a_row = state.get("skipped_in_a_row", 0)
    load_optimizer(trainer.optimizer.optimizer, folder)
    if trainer.average is not None:
        trained, shadow = load_file(folder / "parameters.safetensors"), load_file(folder / "average.safetensors")
        for name, parameter in trainer.problem.policy.trainable.items():
            parameter.data.copy_(trained[name])
        trainer.average.restore([shadow[name] for name in trainer.problem.policy.trainable], state["average_updates"])
    tensors = folder / "method.safetensors"
    trainer.restore(state, load_file(tensors) if tensors.is_file() else {})
    if "scaler" in state and trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler.load_state_dict(state["scaler"])
    trainer.source.restore(folder, trainer.problem.encode)
    own = folder / f"rng-{processes.rank():05d}.json"
    if own.is_file():
        restore_rng(json.loads(own.read_text(encoding="utf-8")))
