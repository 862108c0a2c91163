"""Memory that is short in the loss or in an evaluation: it is said, less is tried, and no number depends on it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from amsd.diffusion.families import family_for
from amsd.diffusion.rollout import rollout
from amsd.errors import RunError
from amsd.evaluation import protocol
from amsd.evaluation.scorers import Images, Scorers
from amsd.experiment.sample import SampleRequest, pictures
from amsd.experiment.train import train
from amsd.recipe import load_recipe
from amsd.rewards.embedders import PixelEmbedder
from amsd.rewards.simple import Brightness
from amsd.run_directory import RunDirectory
from amsd.tracking.log import read_log
from amsd.training import chunks, validation
from amsd.training.chunks import ChunkSize, from_the_start, in_chunks, micro_batch_size, picture_size
from amsd.training.gradients import Gradients
from amsd.training.validation import validation_values
from tests import pipelines
from tests.experiment.test_train import recipe
from tests.training import by_hand


@pytest.fixture(autouse=True)
def no_collection_of_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "clear_device_cache", lambda garbage_collection: None)


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


FIVE = {"num_inference_steps": 5}


@pytest.mark.parametrize("name", ["am", "buffer-am", "eam", "ram", "draft", "refl", "ddpo"])
def test_micro_batches_adapt_for_every_method(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`auto`, with memory for two trajectories in the loss: the gradient is that of two at a time."""
    short = False
    backward = Gradients._backward

    def limited(self: Gradients[Any], losses: Tensor, weights: Tensor) -> None:
        backward(self, losses, weights)
        if short and len(losses) > 2 * self._recipe.method.items_per_trajectory:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Gradients, "_backward", limited)
    found = []
    for size in (2, "auto"):
        short = size == "auto"
        optimizer = {"prompts_per_step": 4, "micro_batch": size}
        pipeline = pipelines.stable_diffusion(scheduler=pipelines.ddim())
        built = by_hand.trainer(
            pipeline, tmp_path / str(size), method={"name": name}, schedule=FIVE, optimizer=optimizer
        )
        with caplog.at_level(logging.WARNING, logger="amsd"):
            built.gradients.take(built.source.batch(1), 1)
        found.append([parameter.grad.clone() for parameter in built.parameters if parameter.grad is not None])
        assert built.gradients.size.largest == 2
    assert "The loss of 4 trajectories at once does not fit into memory; trying 2." in caplog.text
    assert any(bool(value.any()) for value in found[0])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["am", "ddpo"])
def test_a_reward_that_does_not_fit_gets_fewer_pictures_and_no_trajectory_is_lost(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a gradient and without one."""
    found, sizes, drawn = [], [], []
    for limit in (9, 2):
        pipeline = pipelines.stable_diffusion(scheduler=pipelines.ddim())
        built = by_hand.trainer(pipeline, tmp_path / str(limit), method={"name": name}, schedule=FIVE)

        def reward(images: Tensor, prompts: Sequence[str], limit: int = limit) -> Any:
            sizes.append(len(images))
            if len(images) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return by_hand.left_over_right(images, prompts)

        built.problem = replace(built.problem, reward=reward)
        rollouts = count_calls(monkeypatch, "amsd.training.sampling")
        with caplog.at_level(logging.WARNING, logger="amsd"):
            found.append(built.compute_experience(by_hand.SAMPLES, 1, 1))
        drawn.append(len(rollouts))
    assert "The reward of 4 pictures at once does not fit into memory; trying 2." in caplog.text
    assert sizes == [4, 4, 2, 2]
    assert drawn == [1, 1]
    torch.testing.assert_close(found[1].rewards, found[0].rewards)
    if name == "am":
        torch.testing.assert_close(found[1].adjoints, found[0].adjoints, rtol=1e-4, atol=1e-5)


def count_calls(monkeypatch: pytest.MonkeyPatch, module: str) -> list[int]:
    """Grows with each rollout that a module makes."""
    calls: list[int] = []

    def counted(*given: Any) -> Any:
        calls.append(1)
        return rollout(*given)

    monkeypatch.setattr(f"{module}.rollout", counted)
    return calls


def test_a_reward_without_room_for_one_picture_leaves_it_to_the_collection() -> None:
    size = ChunkSize(2, 2, chunks.REWARD, inner=True)

    def full(items: Sequence[int]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        in_chunks([1, 2], size, full)


def test_scorers_and_embedders_that_do_not_fit_get_fewer_pictures(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[int] = []

    class Large(Brightness):
        def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
            seen.append(len(images))
            if len(images) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().__call__(images, prompts)

    class LargeEmbedder(PixelEmbedder):
        def __call__(self, images: Tensor) -> Tensor:
            seen.append(len(images))
            if len(images) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().__call__(images)

    prompts, device = ("a", "b", "c"), torch.device("cpu")
    pictures = torch.randint(256, (6, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    batches = [[(0, 0), (0, 1), (1, 0), (1, 1)], [(2, 0), (2, 1)]]
    images = Images(batches, [pictures[:4], pictures[4:]], 3)
    found = []
    for reward, embedder in ((Brightness(), PixelEmbedder()), (Large(), LargeEmbedder())):
        scorers = Scorers(prompts, 2, [reward], [embedder], [])
        found.append(scorers.measure([reward.name, f"diversity/{embedder.name}"], [], images, device, None).values)
    assert found[0] == found[1]
    assert seen == [4, 2, 2, 2, 4, 2, 2, 2]
    assert "Scoring 4 pictures at once does not fit into memory; trying 2." in caplog.text


def test_validation_that_does_not_fit_draws_fewer_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = by_hand.trainer(pipelines.stable_diffusion(scheduler=pipelines.ddim()), tmp_path, schedule=FIVE)
    expected = validation_values(built.problem, ["a", "b"])
    sizes: list[int] = []

    def short(predict: Any, steps: Any, noise: Tensor) -> Any:
        sizes.append(len(noise))
        if len(noise) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rollout(predict, steps, noise)

    monkeypatch.setattr(validation, "rollout", short)
    assert validation_values(built.problem, ["a", "b"]) == pytest.approx(expected, rel=1e-4)
    assert sizes[:3] == [4, 2, 3]  # half way once, then what is known to fit
    assert set(sizes[3:]) == {2}
    assert sum(sizes) == 4 + 3 + 16


def test_samples_that_do_not_fit_are_drawn_in_smaller_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    family = family_for(pipelines.stable_diffusion(scheduler=pipelines.ddim()))
    chosen, request = load_recipe("shapes", ["schedule.num_inference_steps=5"]), SampleRequest(("a circle",), count=3)
    expected = [np.asarray(picture, dtype=int) for picture in pictures(family, chosen, "a circle", request)]
    draw, sizes = type(family).draw, []

    def short(self: Any, arguments: Any, generators: Sequence[Any], **rest: Any) -> Tensor:
        sizes.append(len(generators))
        if len(generators) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return draw(self, arguments, generators, **rest)

    monkeypatch.setattr(type(family), "draw", short)
    found = [np.asarray(picture, dtype=int) for picture in pictures(family, chosen, "a circle", request)]
    assert sizes == [3, 1, 2]
    assert all(abs(one - other).max() <= 1 for one, other in zip(found, expected, strict=True))


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
