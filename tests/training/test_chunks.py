"""Collections in parts: as large as memory allows, and the same whatever the parts are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amsd.errors import RunError
from amsd.recipe import load_recipe
from amsd.training import chunks
from amsd.training.chunks import ChunkSize, chunk_size, in_chunks
from amsd.training.experience import Sample
from amsd.training.methods.lean_adjoint import AdjointExperience
from tests.training.test_sources import GUIDANCE, trainer_on


class Memory:
    """Work that needs one unit of memory per item."""

    def __init__(self, units: int) -> None:
        self.units = units
        self.failures = 0

    def __call__(self, items: Sequence[int]) -> list[int]:
        if len(items) > self.units:
            self.failures += 1
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(items)} units")
        return list(items)


@pytest.fixture(autouse=True, scope="module")
def no_collection_of_garbage() -> Iterator[None]:
    """It takes a third of a second each time, and there is no device whose memory it could free."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "clear_device_cache", lambda garbage_collection: None)
        yield


@given(units=st.integers(1, 200), first=st.integers(1, 40), count=st.integers(1, 300), collections=st.integers(1, 5))
def test_nothing_is_lost_and_the_size_that_fits_is_found(units: int, first: int, count: int, collections: int) -> None:
    memory, size = Memory(units), ChunkSize(first, None)
    for _ in range(collections):
        parts = in_chunks(range(count), size, memory)
        assert [item for part in parts for item in part] == list(range(count))
    for _ in range(12):  # the search ends
        in_chunks(range(count), size, memory)
    failures = memory.failures
    last = in_chunks(range(count), size, memory)
    assert memory.failures == failures  # and what it found is remembered
    assert max(map(len, last)) > 0.75 * min(units, count) or min(units, count) - max(map(len, last)) <= 1
    assert failures <= 10


def test_a_limit_is_never_passed_and_a_shorter_memory_is_noticed() -> None:
    memory, size = Memory(100), ChunkSize(6, 6)
    assert [len(part) for part in in_chunks(range(20), size, memory)] == [6, 6, 6, 2]
    memory.units = 4
    assert next(len(part) for part in in_chunks(range(20), size, memory)) == 3
    assert max(len(part) for part in in_chunks(range(20), size, memory)) == 4
    assert size.largest == 4


def test_not_even_one_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(RunError, match="gradient_checkpointing"):
        in_chunks(range(3), ChunkSize(4, None), Memory(0))


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def broken(items: Sequence[int]) -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        in_chunks(range(3), ChunkSize(2, None), broken)


@pytest.mark.parametrize(
    ("settings", "on_accelerator", "expected"),
    [
        (["training.collection_batch=3"], False, 3),
        (["training.collection_batch=3"], True, 3),
        ([], True, 16),  # where the search starts
        ([], False, 64),  # the loss has 16 x 4 rows in the network
        (["training.gradient_checkpointing=true"], False, 1),  # the base's activations are all kept
        (["training.gradient_checkpointing=true", "method.name=eam"], False, 1),
        (["training.gradient_checkpointing=true", "method.name=eam", "method.reward_at=endpoint"], False, 64),
        (["training.gradient_checkpointing=true", "method.name=ram"], False, 64),  # it only samples
        (["training.gradient_checkpointing=true", "method.name=draft"], False, 16),
        (["guidance.guidance_scale=5.0", "guidance.guidance_in_adjoint_computation=true"], False, 32),
    ],
)
def test_what_is_tried_first(settings: list[str], on_accelerator: bool, expected: int) -> None:
    assert chunk_size(load_recipe("shapes", settings), on_accelerator).next == expected


def test_on_the_cpu_the_size_never_grows() -> None:
    size = chunk_size(load_recipe("shapes"), on_accelerator=False)
    assert max(len(part) for part in in_chunks(range(1000), size, Memory(10_000))) == 64


SAMPLES = [Sample(prompt, (0, "test", index)) for index, prompt in enumerate(["a", "a red circle", "b", "", "c"])]
LATENTS = ("states", "adjoints", "base_predictions", "noises", "sampler_predictions")


def assert_same(one: AdjointExperience, other: AdjointExperience) -> None:
    assert one.prompts == other.prompts
    for name in ("indices", "columns", "dropped"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    for name in LATENTS:
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-3, atol=1e-4, msg=name)
    for name in ("rewards", "reward_gradient_norm", "clamped_share"):
        a, b = getattr(one, name), getattr(other, name)
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)


def collected(trainer: Any, size: ChunkSize) -> AdjointExperience:
    trainer.collection = size
    experience: AdjointExperience = trainer._collect(SAMPLES, 1, 1)
    return experience


@pytest.mark.parametrize("mode", GUIDANCE)
def test_experience_does_not_depend_on_the_parts(mode: str) -> None:
    trainer = trainer_on(GUIDANCE[mode], dropout=0.5)
    whole = collected(trainer, ChunkSize(5, 5))
    for size in (1, 2, 3):
        assert_same(collected(trainer, ChunkSize(size, size)), whole)


@pytest.mark.parametrize("phase", ["finetuned", "base"])
def test_running_out_of_memory_in_the_middle_loses_nothing(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the rollout, and in the adjoint after it."""
    trainer = trainer_on(GUIDANCE["no guidance"])
    whole = collected(trainer, ChunkSize(5, 5))
    predict, calls = getattr(trainer.problem.policy, phase), []

    def small(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        calls.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("Allocation on device")
        result: torch.Tensor = predict(x, *rest)
        return result

    monkeypatch.setattr(trainer.problem.policy, phase, small)
    size = ChunkSize(1, None)
    found = collected(trainer, size)  # 1, then 2, then the other 2
    found_again = collected(trainer, size)  # 4 fail, 3 fail, 2 fit from there on
    assert_same(found, whole)
    assert_same(found_again, whole)
    assert {3, 4} & set(calls)
    assert size.largest == 2


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED when calling",
        "Invalid buffer size: 9 GB",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED.",
        "std::bad_alloc",
    ],
)
def test_every_form_of_out_of_memory_is_known(text: str) -> None:
    def work(part: Sequence[int]) -> list[int]:
        if len(part) > 1:
            raise RuntimeError(text)
        return list(part)

    assert in_chunks([1, 2, 3], ChunkSize(3, 3), work) == [[1], [2], [3]]


def test_another_error_is_no_shortage() -> None:
    def work(part: Sequence[int]) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        in_chunks([1, 2, 3], ChunkSize(3, 3), work)


def test_a_single_item_that_does_not_fit_says_what_was_said() -> None:
    def work(part: Sequence[int]) -> None:
        raise torch.OutOfMemoryError("tried to allocate 2 EiB")

    with pytest.raises(RunError, match=r"gradient_checkpointing.*tried to allocate 2 EiB"):
        in_chunks([1], ChunkSize(1, 1), work)
