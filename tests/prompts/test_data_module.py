"""Order of prompts: invariants that hold for any number of prompts, batch size and process count."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amsd.prompts import BufferPromptDataModule, PromptDataModule
from amsd.prompts.data_module import permutation

sizes = st.integers(1, 40)


def texts(count: int) -> list[str]:
    return [f"prompt {index}" for index in range(count)]


@given(count=sizes, size=sizes, seed=st.integers(0, 5))
def test_no_prompt_is_used_again_before_all_were_used(count: int, size: int, seed: int) -> None:
    module = PromptDataModule(texts(count), seed)
    stream = [index for number in range(2 * count + 1) for index in module.indices(number, size)]
    for epoch in range(len(stream) // count):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == list(range(count))


@given(count=sizes, size=sizes)
def test_a_batch_needs_no_history(count: int, size: int) -> None:
    running = PromptDataModule(texts(count), seed=3)
    history = [running.batch(number, size) for number in range(5)]
    assert PromptDataModule(texts(count), seed=3).batch(4, size) == history[4]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {PromptDataModule(texts(12), seed).indices(epoch, 12) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_the_order_is_the_same_in_another_process() -> None:
    code = "from amsd.prompts import PromptDataModule as P; print(P('abcdefgh', 7).batch(3, 5))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONHASHSEED": "123"},
    )  # fmt: skip
    assert found.stdout.strip() == str(PromptDataModule("abcdefgh", 7).batch(3, 5))


def test_permutations_are_uniform() -> None:
    # 6 orders of 3 items, 3000 draws: chi-squared with 5 degrees of freedom exceeds 20.5 once in 1000.
    counts = Counter(permutation(3, "uniform", draw) for draw in range(3000))
    statistic = sum((counts[order] - 500) ** 2 / 500 for order in itertools.permutations(range(3)))
    assert statistic < 20.5


def test_prompts_are_required() -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        PromptDataModule([], 0)


@given(size=sizes, prompts_per_step=sizes, collection=st.integers(0, 3), pass_index=st.integers(0, 3))
def test_a_pass_uses_every_trajectory_at_most_once_in_full_steps(
    size: int, prompts_per_step: int, collection: int, pass_index: int
) -> None:
    module = BufferPromptDataModule(texts(9), 0, size, prompts_per_step)
    steps = [module.step(collection, pass_index, position) for position in range(module.steps_per_pass)]
    used = [trajectory for step in steps for trajectory in step]
    assert all(len(step) == min(prompts_per_step, size) for step in steps)
    assert len(used) == len(set(used)) == size // min(prompts_per_step, size) * min(prompts_per_step, size)
    assert set(used) <= set(range(size))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_process_holds_an_even_share_of_every_step(world: int) -> None:
    module = BufferPromptDataModule(texts(9), 0, size=24, prompts_per_step=8)
    for position in range(module.steps_per_pass):
        owners = Counter(trajectory % world for trajectory in module.step(1, 2, position))
        assert set(owners.values()) == {8 // world}


def test_what_one_pass_leaves_out_another_uses() -> None:
    module = BufferPromptDataModule(texts(9), 0, size=11, prompts_per_step=4)
    used = {i for p in range(12) for at in range(module.steps_per_pass) for i in module.step(0, p, at)}
    assert used == set(range(11))


def test_passes_and_collections_are_shuffled_differently() -> None:
    module = BufferPromptDataModule(texts(9), 0, size=32, prompts_per_step=4)
    orders = {tuple(module.step(n, p, at) for at in range(8)) for n in range(3) for p in range(3)}
    assert len(orders) == 9


def test_collections_go_on_where_the_last_one_ended() -> None:
    module = BufferPromptDataModule(texts(6), 1, size=4, prompts_per_step=2)
    stream = [prompt for number in range(3) for prompt in module.collection(number)]
    assert sorted(stream[:6]) == sorted(stream[6:]) == texts(6)
