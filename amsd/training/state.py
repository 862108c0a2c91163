"""Resumable state as safetensors and JSON: nothing on disk can run code when it is read."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from amsd.training.experience import Diagnostics, Experience

_LATENTS = ("states", "adjoints", "base_predictions", "noises", "sampler_predictions")


def save_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Write `optimizer.safetensors` and `optimizer.json`."""
    state = optimizer.state_dict()
    tensors, scalars = {}, {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value.detach().cpu().contiguous()
            else:
                scalars[f"{index}.{name}"] = value
    save_file(tensors, folder / "optimizer.safetensors")
    _write(folder / "optimizer.json", {"scalars": scalars, "param_groups": state["param_groups"]})


def load_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Read what `save_optimizer` wrote."""
    extra = json.loads((folder / "optimizer.json").read_text(encoding="utf-8"))
    state: dict[int, dict[str, Any]] = {}
    values: dict[str, Any] = dict(load_file(folder / "optimizer.safetensors")) | extra["scalars"]
    for key, value in values.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": extra["param_groups"]})


def rng_state() -> dict[str, Any]:
    """State of the process-wide generators (a user's reward may draw from them), as plain data."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": [version, list(internal), gauss],
        "numpy": [name, np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state().tolist(),
    }
    if torch.cuda.is_available():
        state["cuda"] = [value.tolist() for value in torch.cuda.get_rng_state_all()]
    return state


def restore_rng(state: Mapping[str, Any]) -> None:
    """Set the process-wide generators to what `rng_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if "cuda" in state and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([torch.tensor(value, dtype=torch.uint8) for value in state["cuda"]])


def save_experience(experience: Experience, file: Path) -> None:
    """Write a buffer's experience; its encoded prompts are made again from the prompts when it is loaded."""
    diagnostics = experience.diagnostics
    tensors = {name: getattr(experience, name) for name in (*_LATENTS, "indices", "columns", "dropped")}
    tensors |= {f"terms/{name}": value for name, value in diagnostics.terms.items()}
    tensors |= {f"adjoint_norm/{name}": value for name, value in diagnostics.adjoint_norm.items()}
    for name in ("rewards", "reward_gradient_norm", "clamped_share", "initial_cosine"):
        tensors[name] = getattr(diagnostics, name)
    cpu = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(cpu, file, metadata={"prompts": json.dumps(experience.prompts)})


def load_experience(file: Path, encode: Any) -> Experience:
    """Read what `save_experience` wrote; `encode` maps a list of prompts to their `Conditioning`."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as stream:
        prompts = json.loads(stream.metadata()["prompts"])
    tensors = load_file(file)

    def under(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

    diagnostics = Diagnostics(
        rewards=tensors["rewards"],
        terms=under("terms/"),
        reward_gradient_norm=tensors["reward_gradient_norm"],
        clamped_share=tensors["clamped_share"],
        adjoint_norm=under("adjoint_norm/"),
        # Buffers of earlier versions lack it; it is only logged.
        initial_cosine=tensors.get("initial_cosine", torch.full_like(tensors["rewards"], torch.nan)),
    )
    return Experience(
        prompts=tuple(prompts),
        indices=tensors["indices"],
        columns=tensors["columns"],
        states=tensors["states"],
        adjoints=tensors["adjoints"],
        base_predictions=tensors["base_predictions"],
        noises=tensors["noises"],
        sampler_predictions=tensors["sampler_predictions"],
        conditioning=encode(prompts),
        dropped=tensors["dropped"],
        diagnostics=diagnostics,
    )


def _write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data), encoding="utf-8")
