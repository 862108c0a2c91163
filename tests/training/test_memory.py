"""Memory that is short in the loss or in an evaluation: it is said, less is tried, and no number depends on it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from amsd.errors import RunError
from amsd.evaluation import protocol
from amsd.experiment.train import train
from amsd.recipe import load_recipe
from amsd.run_directory import RunDirectory
from amsd.tracking.log import read_log
from amsd.training import chunks
from amsd.training.chunks import ChunkSize, from_the_start, micro_batch_size, picture_size
from amsd.training.gradients import Gradients
from tests import pipelines
from tests.experiment.test_train import recipe


@pytest.fixture(autouse=True)
def no_collection_of_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "clear_device_cache", lambda garbage_collection: None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "sd"
    pipelines.stable_diffusion(scheduler=pipelines.ddim()).save_pretrained(folder)
    return folder


def trained(model: Path, folder: Path, micro_batch: int | str, method: dict[str, Any]) -> dict[str, Tensor]:
    chosen = recipe(
        model,
        method=method,
        optimizer={"micro_batch": micro_batch},
        training={"steps": 2, "checkpoint_every": 2},
        evaluation={"every": 0},
    )
    run = train(chosen, folder).run
    (weights,) = run.checkpoint(2).glob("unet/*.safetensors")
    return load_file(weights)


METHODS = {
    "weights of its own": {"timesteps_per_trajectory": 2},
    "weights of the whole batch": {"timesteps_per_trajectory": 2, "outlier_threshold": "current"},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("micro_batch", [4, "auto"])
def test_a_loss_that_does_not_fit_is_taken_in_smaller_chunks(
    method: str, micro_batch: int | str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Memory ends in the backward pass of three trajectories, when their gradient has been added already."""
    expected = trained(model, tmp_path / "small", 2, METHODS[method])
    backward, sizes = Gradients._backward, []

    def short(self: Gradients[Any], losses: Tensor, weights: Tensor) -> None:
        backward(self, losses, weights)
        sizes.append(len(losses) // 2)
        if len(losses) > 2 * 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(Gradients, "_backward", short)
    with caplog.at_level(logging.WARNING, logger="amsd"):
        found = trained(model, tmp_path / "short", micro_batch, METHODS[method])
    assert "The loss of 4 trajectories at once does not fit into memory; trying 2." in caplog.text
    assert sizes.count(4) == 1  # what was learned is kept for the next step
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)
    entries = read_log(RunDirectory(tmp_path / "short").metrics).entries
    logged = [entry.values["loss/batch"] for entry in entries if entry.kind == "step"]
    assert logged == [2.0, 2.0]


def test_a_single_trajectory_that_does_not_fit_ends_the_run_with_the_way_out(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Gradients[Any], losses: Tensor, weights: Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Gradients, "_backward", full)
    with pytest.raises(
        RunError, match=r"loss of a single trajectory.*gradient_checkpointing = true.*CUDA out of memory"
    ):
        trained(model, tmp_path / "run", 4, METHODS["weights of its own"])


@pytest.mark.parametrize("batch", [4, "auto"])
def test_pictures_that_do_not_fit_are_drawn_in_smaller_batches(
    batch: int | str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def evaluated(folder: str, size: int | str) -> Any:
        monkeypatch.setenv("AMSD_CACHE", str(tmp_path / folder / "cache"))
        chosen = recipe(
            model, training={"steps": 1}, evaluation={"batch_size": size, "samples_per_prompt": 3, "metrics": []}
        )
        return train(chosen, tmp_path / folder).results[0].metrics["brightness"].per_prompt

    expected = evaluated("whole", 4)
    generate, sizes = protocol.generate, []

    def short(family: Any, sampler: Any, arguments: Any, indices: Sequence[Any], *rest: Any) -> Tensor:
        sizes.append(len(indices))
        if len(indices) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(family, sampler, arguments, indices, *rest)

    monkeypatch.setattr(protocol, "generate", short)
    with caplog.at_level(logging.WARNING, logger="amsd"):
        found = evaluated("short", batch)
    assert "pictures at once does not fit into memory" in caplog.text
    assert found == pytest.approx(expected, abs=2e-3)  # one grey level of 8 bits
    assert sizes[-3:] == [2, 2, 2]


def test_what_is_tried_first() -> None:
    auto = load_recipe("shapes", ["optimizer.micro_batch=auto", "evaluation.batch_size=auto"])
    assert micro_batch_size(auto, on_accelerator=False).next == 5
    assert picture_size(auto, on_accelerator=False).next == 8
    for size in (micro_batch_size(auto, on_accelerator=True), picture_size(auto, on_accelerator=True)):
        first = size.next
        size.fitted(first)
        assert size.next == 2 * first
    fixed = micro_batch_size(load_recipe("shapes", ["optimizer.micro_batch=3"]), on_accelerator=True)
    fixed.fitted(3)
    assert fixed.next == 3


def test_work_begins_again_from_the_start() -> None:
    begun, seen = [], []

    def work(part: slice) -> list[int]:
        found = list(range(10))[part]
        if len(found) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        seen.extend(found)
        return found

    parts = from_the_start(10, ChunkSize(8, 8), work, lambda: begun.append(seen.clear()))
    assert [item for part in parts for item in part] == list(range(10))
    assert seen == list(range(10))
    assert len(begun) == 3  # 8 and 4 did not fit
