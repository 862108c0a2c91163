"""Chunks of a buffer that come to the device beside the loss: the same numbers, in time, and no more than is used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from amsd.experiment.train import train
from amsd.training import chunks, gradients
from amsd.training.fetching import SideStream, _flat
from amsd.training.gradients import Gradients
from tests.experiment.test_train import merged

METHODS: dict[str, dict[str, Any]] = {
    "buffer-am": {"timesteps_per_trajectory": 2, "buffer": {"size": 4, "passes": 2}},
    "buffer-am, the batch's own threshold": {
        "timesteps_per_trajectory": 2, "buffer": {"size": 4, "passes": 2, "min_ess": 0.1},
        "outlier_threshold": "current",
    },
    "ddpo": {"timesteps_per_trajectory": 2, "buffer": {"size": 4, "passes": 2}},
    "ram": {"timesteps_per_trajectory": 2},
    "draft": {},
}  # fmt: skip


class Late:
    """A stand-in for a side stream: what it carries is NaN until it arrives."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.numbers = 0
        self._under_way: dict[int, Tensor] = {}

    def carry(self, source: Tensor, *index: Tensor) -> Tensor:
        value = source[index].clone()
        coming = torch.full_like(value, torch.nan)
        self._under_way[id(coming)] = value
        self.numbers += value.numel()
        self.told.append("carry")
        return coming

    def arrive(self, value: Tensor) -> None:
        value.copy_(self._under_way.pop(id(value)))
        self.told.append("arrive")


def weights(model: Path, folder: Path, name: str, micro_batch: int = 2) -> dict[str, Tensor]:
    """After two steps of four trajectories."""
    method = {"name": name.partition(",")[0], **METHODS[name]}
    changes: dict[str, Any] = {
        "method": method, "prompts": {"dropout": 0.0 if name in ("ddpo", "draft") else 0.5}, "evaluation": {"every": 0},
        "optimizer": {"prompts_per_step": 4, "micro_batch": micro_batch},
        "training": {"steps": 2, "checkpoint_every": 2},
    }  # fmt: skip
    if name == "ddpo":
        changes["method"]["group_size"] = 2
    run = train(merged(model, changes), folder).run
    (file,) = run.checkpoint(2).glob("unet/*.safetensors")
    return load_file(file)


def groups(told: list[str]) -> list[str]:
    """Runs of equal words as one."""
    return [word for place, word in enumerate(told) if place == 0 or told[place - 1] != word]


@pytest.mark.parametrize("name", METHODS)
def test_numbers_are_those_of_the_buffer_itself(
    name: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = weights(model, tmp_path / "plain", name)
    late, backward = Late(), Gradients._backward
    monkeypatch.setattr(gradients, "carrier_for", lambda device: late)

    def told(self: Gradients[Any], losses: Tensor, given: Tensor) -> None:
        late.told.append("loss")
        backward(self, losses, given)

    monkeypatch.setattr(Gradients, "_backward", told)
    found = weights(model, tmp_path / "carried", name)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    if "threshold" not in name:  # two chunks in each of two steps; the second one is on its way after the first's loss
        assert groups(late.told) == ["carry", "arrive", "loss"] * 4
        assert not late._under_way


def test_only_the_steps_of_a_pass_are_brought(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = Late()
    monkeypatch.setattr(gradients, "carrier_for", lambda device: late)
    weights(model, tmp_path / "run", "buffer-am")
    latent, condition = 4 * 8 * 8, 16 * 16
    # Two steps x four trajectories x (K = 2 steps x state, adjoint, base prediction; prompt and negative prompt).
    assert late.numbers == 2 * 4 * (2 * 3 * latent + 2 * condition)


def test_where_memory_is_short_smaller_chunks_are_brought(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = weights(model, tmp_path / "plain", "buffer-am", micro_batch=2)
    monkeypatch.setattr(chunks, "clear_device_cache", lambda garbage_collection: None)
    monkeypatch.setattr(gradients, "carrier_for", lambda device: Late())
    backward = Gradients._backward

    def short(self: Gradients[Any], losses: Tensor, given: Tensor) -> None:
        backward(self, losses, given)
        if len(losses) > 2 * 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Gradients, "_backward", short)
    found = weights(model, tmp_path / "short", "buffer-am", micro_batch=4)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)


def indices() -> Iterator[tuple[Tensor, ...]]:
    rows = torch.tensor([2, 0, 2])
    yield (rows,)
    yield (rows[:, None], torch.tensor([[1, 0], [3, 2], [0, 0]]))


def test_gathering_flat_is_indexing() -> None:
    source = torch.randn(3, 4, 5, 2)
    for index in indices():
        flat, rows = _flat(source, *index)
        expected = source[index]
        torch.testing.assert_close(flat.index_select(0, rows).view_as(expected), expected, rtol=0, atol=0)


@pytest.mark.gpu
def test_a_side_stream_brings_what_was_asked_for() -> None:
    device = torch.device("cuda")
    stream = SideStream(device)
    source = torch.randn(3, 4, 64, 64).pin_memory()
    for index in indices():
        busy = torch.randn(4096, 4096, device=device)
        for _ in range(20):
            busy = busy @ busy.softmax(0)
        value = stream.carry(source, *index)
        stream.arrive(value)
        torch.testing.assert_close(value.cpu(), source[index], rtol=0, atol=0)
