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

from amsd.diffusion.sharding import gathered, placed
from amsd.files import Writes, write_nothing
from amsd.training import processes


def optimizer_as_it_is(optimizer: torch.optim.Optimizer) -> Writes:
    """What writes `optimizer.safetensors` and `optimizer.json`; every process calls it, the main process writes."""
    state = optimizer.state_dict()
    flat = {
        f"{index}.{name}": value for index, entries in state["state"].items() for name, value in _flat(entries).items()
    }
    scalars = {name: value for name, value in flat.items() if not isinstance(value, Tensor)}
    # Copies: tables of an 8-bit optimizer are shared by all parameters, which a file of tensors cannot say.
    tensors = gathered({name: value for name, value in flat.items() if isinstance(value, Tensor)})
    if processes.rank() != 0:
        return write_nothing
    text = json.dumps({"scalars": scalars, "param_groups": state["param_groups"]})

    def write(folder: Path) -> None:
        save_file(tensors, folder / "optimizer.safetensors")
        (folder / "optimizer.json").write_text(text, encoding="utf-8")

    return write


def _flat(entries: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Entries of a parameter's state, those of an 8-bit optimizer's inner tables under `table/name`."""
    found: dict[str, Any] = {}
    for name, value in entries.items():
        found |= _flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def load_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Read what `optimizer_as_it_is` wrote."""
    extra = json.loads((folder / "optimizer.json").read_text(encoding="utf-8"))
    state: dict[int, dict[str, Any]] = {}
    values: dict[str, Any] = dict(load_file(folder / "optimizer.safetensors")) | extra["scalars"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, value in values.items():
        index, name = key.split(".", 1)
        *nested, last = name.split("/")
        entries = state.setdefault(int(index), {})
        for each in nested:
            entries = entries.setdefault(each, {})
        entries[last] = placed(value, parameters[int(index)]) if isinstance(value, Tensor) else value
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
