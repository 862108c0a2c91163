"""Experience from a buffer: every trajectory once per pass, the same steps at any number of processes, resumable."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from amsd.diffusion.families import family_for
from amsd.diffusion.families.ddim_scheduler import SOCDDIMScheduler
from amsd.diffusion.guidance import Conditioning, TextCondition
from amsd.diffusion.parameterizations import build_policy
from amsd.matching import effective_sample_size, plan_indices
from amsd.recipe import Recipe, from_dict
from amsd.rewards.combination import WeightedReward
from amsd.training import processes
from amsd.training.clock import PhaseClock
from amsd.training.experience import ItemLosses, Sample
from amsd.training.gradients import gathered
from amsd.training.methods.adjoint_matching import AMTrainer, BufferAMTrainer
from amsd.training.methods.lean_adjoint import AdjointExperience
from amsd.training.problem import ControlProblem
from amsd.training.sources import Batch, Buffered, OnPolicy
from amsd.training.trainer import BufferSOCTrainer
from tests import pipelines

PROMPTS = [f"prompt {index}" for index in range(5)]
SIZE, PER_STEP, PASSES, STEPS_PER_PASS = 18, 6, 3, 3


def recipe(**changes: Any) -> Recipe:
    buffer = {"size": SIZE, "passes": PASSES, **changes}
    return from_dict(
        {
            "method": {"name": "buffer-am", "timesteps_per_trajectory": 2, "buffer": buffer},
            "optimizer": {"prompts_per_step": PER_STEP, "micro_batch": 2},
            "reward": [{"name": "brightness"}],
        }
    )


def encode(prompts: Sequence[str]) -> Conditioning:
    hidden = torch.tensor([float(sum(map(ord, prompt))) for prompt in prompts]).reshape(-1, 1, 1)
    return Conditioning(TextCondition(hidden), TextCondition(torch.zeros_like(hidden)))


def collect(samples: Sequence[Sample], passes: int, step: int) -> AdjointExperience:
    """Trajectories whose latents all hold (collection, number within it)."""
    identity = torch.tensor([[float(v) for v in sample.key[-2:]] for sample in samples])
    plans = [plan_indices(8, 2, passes, torch.Generator().manual_seed(int(n))) for n in identity[:, 1]]
    stored = torch.stack([plan.stored for plan in plans])
    latents = identity[:, None].expand(-1, stored.shape[1], -1)
    scalar = identity[:, 1]
    return AdjointExperience(
        prompts=tuple(sample.prompt for sample in samples),
        indices=stored,
        columns=torch.stack([plan.columns for plan in plans]),
        states=latents, adjoints=latents + 1, base_predictions=latents + 2, noises=latents + 3,
        sampler_predictions=latents + 4,
        conditioning=encode([sample.prompt for sample in samples]),
        dropped=scalar % 2 == 0,
        rewards=scalar, terms={"a": scalar + 1}, reward_gradient_norm=scalar + 2, clamped_share=scalar + 3,
        adjoint_norm={"last": scalar + 4}, initial_cosine=scalar + 5,
    )  # fmt: skip


@contextmanager
def process(rank: int, world: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "rank", lambda: rank)
        patch.setattr(processes, "world_size", lambda: world)
        yield


def used(batch: Batch[AdjointExperience]) -> list[tuple[int, ...]]:
    """(collection, number) of each trajectory of a process's part of a step."""
    return [tuple(map(int, row)) for row in batch.experience.states[batch.rows, 0].tolist()]


def run(world: int, steps: range, sources: list[Any]) -> list[list[tuple[int, ...]]]:
    """Trajectories of every step over all processes, in the order that `shard` deals them."""
    found = []
    for step in steps:
        merged: list[Any] = [None] * PER_STEP
        for rank, source in enumerate(sources):
            with process(rank, world):
                part = used(source.batch(step))
            merged[rank::world] = part  # fails unless the share is the one that `shard` gives
        found.append(merged)
    return found


def sources(world: int, **changes: Any) -> list[Any]:
    return [Buffered(recipe(**changes), PROMPTS, collect, AdjointExperience) for _ in range(world)]


def test_every_trajectory_is_used_once_in_a_pass() -> None:
    steps = run(1, range(1, 2 * PASSES * STEPS_PER_PASS + 1), sources(1))
    for collection in range(2):
        orders = set()
        for number in range(PASSES):
            start = (collection * PASSES + number) * STEPS_PER_PASS
            one_pass = [item for step in steps[start : start + STEPS_PER_PASS] for item in step]
            assert sorted(one_pass) == [(collection, index) for index in range(SIZE)]
            orders.add(tuple(one_pass))
        assert len(orders) == PASSES  # shuffled anew


def test_very_many_passes_are_taken_one_by_one() -> None:
    (source,) = sources(1, passes=10**18)
    with process(0, 1):
        seen = set()
        for step in range(1, 4 * STEPS_PER_PASS + 1):
            batch = source.batch(step)
            assert batch.pass_index == (step - 1) // STEPS_PER_PASS
            assert batch.collected == (SIZE if step == 1 else 0)
            seen.update(used(batch))
        source._used = 10**18 * STEPS_PER_PASS - 1  # the last one
        last = source.batch(step + 1)
        assert last.pass_index == 10**18 - 1
        items = last.experience.items(last.rows, last.pass_index)
        assert torch.equal(items.column.view(-1, 2), last.experience.columns_of(last.rows, last.pass_index))
        assert source.batch(step + 2).collected == SIZE
    assert len(seen) == SIZE


def test_collections_are_due_exactly_when_the_passes_are_used_up() -> None:
    source = Buffered(recipe(), PROMPTS, collect, AdjointExperience)
    batches = [source.batch(step) for step in range(1, 2 * PASSES * STEPS_PER_PASS + 1)]
    assert [batch.collected for batch in batches] == ([SIZE] + [0] * (PASSES * STEPS_PER_PASS - 1)) * 2
    assert [batch.pass_index for batch in batches] == [p for p in range(PASSES) for _ in range(STEPS_PER_PASS)] * 2


@pytest.mark.parametrize("world", [2, 3, 4, 5, 6])
def test_steps_are_the_same_at_any_number_of_processes(world: int) -> None:
    steps = range(1, PASSES * STEPS_PER_PASS + 4)
    assert run(world, steps, sources(world)) == run(1, steps, sources(1))


@pytest.mark.parametrize("world", [1, 2, 4, 6])
def test_new_trajectories_are_the_same_at_any_number_of_processes(world: int) -> None:
    def on_policy(count: int) -> list[Any]:
        return [OnPolicy(recipe(), PROMPTS, collect, AdjointExperience) for _ in range(count)]

    found = run(world, range(1, 4), on_policy(world))
    assert found == [[(step, index) for index in range(PER_STEP)] for step in range(1, 4)]


def test_a_small_effective_sample_size_brings_the_next_collection_forward() -> None:
    source = Buffered(recipe(min_ess=0.5), PROMPTS, collect, AdjointExperience)
    collected = []
    for step, ess in enumerate([0.9, 0.51, 0.49, 1.0, 1.0], 1):
        collected.append(source.batch(step).collected)
        source.feedback(ess)
    assert collected == [SIZE, 0, 0, SIZE, 0]


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (1, 3), (3, 1), (4, 2), (2, 5)])
def test_a_buffer_resumes_in_the_middle_of_a_pass(before: int, after: int, tmp_path: Path) -> None:
    middle, end = STEPS_PER_PASS + 2, 2 * PASSES * STEPS_PER_PASS
    straight = sources(1)
    run(1, range(1, middle + 1), straight)
    expected = run(1, range(middle + 1, end), straight)

    interrupted = sources(before)
    run(before, range(1, middle + 1), interrupted)
    for rank, source in enumerate(interrupted):
        with process(rank, before):
            source.as_it_is()(tmp_path)
    resumed = sources(after)
    for rank, source in enumerate(resumed):
        with process(rank, after):
            source.restore(tmp_path, encode)
    assert run(after, range(middle + 1, end), resumed) == expected


def test_what_is_restored_is_what_was_saved_bit_for_bit(tmp_path: Path) -> None:
    source, again = sources(2, dtype="bf16")
    before = source.batch(1)
    source.as_it_is()(tmp_path)
    again.restore(tmp_path, encode)
    old, new = before.experience, again.batch(2).experience
    assert new.prompts == old.prompts
    assert old.states.dtype == torch.bfloat16
    for name in ("indices", "columns", "states", "adjoints", "base_predictions", "noises", "sampler_predictions"):
        assert torch.equal(getattr(new, name), getattr(old, name)), name
        assert getattr(new, name).dtype == getattr(old, name).dtype
    assert torch.equal(new.dropped, old.dropped)
    assert torch.equal(new.conditioning.prompt.hidden_states, old.conditioning.prompt.hidden_states)
    for name in ("rewards", "reward_gradient_norm", "clamped_share", "initial_cosine"):
        assert torch.equal(getattr(new, name), getattr(old, name)), name
    assert torch.equal(new.terms["a"], old.terms["a"])
    assert torch.equal(new.adjoint_norm["last"], old.adjoint_norm["last"])


@pytest.mark.parametrize("world", [1, 2, 4, 5])
def test_items_of_uneven_shares_are_gathered_in_the_order_of_one_process(
    world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 6 trajectories on 4 processes two of them hold twice as many items as the others."""
    everything = torch.arange(2.0 * PER_STEP)
    shares = [everything.view(PER_STEP, 2)[rank::world] for rank in range(world)]

    def exchanged(parts: list[Any], own: list[Any]) -> None:
        parts[:] = [[{"": row, "twice": [2 * value for value in row]} for row in share.tolist()] for share in shares]

    monkeypatch.setattr(processes.dist, "all_gather_object", exchanged)
    for rank in range(world):
        with process(rank, world):
            own = shares[rank].flatten()
            found = gathered([ItemLosses(own, {"twice": 2 * own})], 2)
            assert torch.equal(found.loss, everything)
            assert torch.equal(found.logged["twice"], 2 * everything)


GUIDANCE = {
    "guided trajectories": {"guidance_scale": 7.5},
    "no guidance": {"guidance_scale": 1.0},
    "full guidance": {
        "guidance_scale": 7.5,
        "guidance_in_adjoint_computation": True,
        "guidance_in_control_computation": True,
    },
}


def trainer_on(guidance: dict[str, Any], dropout: float = 0.0) -> Any:
    settings = from_dict(
        {
            "schedule": {"num_inference_steps": 4},
            "guidance": guidance,
            "method": {
                "name": "buffer-am",
                "timesteps_per_trajectory": 2,
                "buffer": {"size": 4, "passes": 1, "min_ess": 0.1},
            },
            "prompts": {"dropout": dropout},
            "optimizer": {"prompts_per_step": 4, "micro_batch": 4},
            "reward": [{"name": "brightness"}],
        }
    )
    family = family_for(pipelines.stable_diffusion())
    policy = build_policy(family, settings.model)
    steps = SOCDDIMScheduler.for_recipe(family.pipeline.scheduler, settings.schedule).affine(1.0)
    trainer = BufferAMTrainer.__new__(BufferAMTrainer)
    reward = WeightedReward.from_recipe(settings.reward)
    trainer.problem = ControlProblem(settings, family, policy, steps, reward, torch.device("cpu"))
    trainer.recipe = settings
    trainer.clock = PhaseClock(torch.device("cpu"), lambda phase: None)
    return trainer


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("mode", GUIDANCE)
def test_an_unchanged_policy_has_its_full_sample_size(mode: str, dropout: float) -> None:
    trainer = trainer_on(GUIDANCE[mode], dropout)
    samples = [Sample(prompt, (0, "test", index)) for index, prompt in enumerate(["a", "a red circle", "b", ""])]
    experience = trainer.compute_experience(samples, 1, 1)
    items = experience.items(torch.arange(4), 0)
    with torch.no_grad():
        matched = trainer.match(items, weigh=True)
    weights = matched.log_weights
    assert effective_sample_size(weights.double()) / len(weights) == pytest.approx(1, abs=1e-6)
    assert weights.abs().max() < 1e-3  # rounding: the rollout predicted other rows in one call
    assert float(matched.control_norm.max()) < 1e-6
    assert float(matched.target_norm.min()) > 0

    with torch.no_grad():
        for value in trainer.problem.policy.trainable.values():
            value.mul_(1.05)
        changed = trainer.match(items, weigh=True).log_weights
    assert effective_sample_size(changed.double()) / len(changed) < 0.99


def test_the_buffered_trainer_adds_nothing_and_its_parents_do_not_meet() -> None:
    def defined(cls: type) -> set[str]:
        return {name for name in vars(cls) if not name.startswith("__") and name != "_abc_impl"}

    assert BufferAMTrainer.__bases__ == (BufferSOCTrainer, AMTrainer)
    assert defined(BufferAMTrainer) == set()
    assert defined(BufferSOCTrainer) & defined(AMTrainer) == set()
    assert not BufferAMTrainer.__abstractmethods__
