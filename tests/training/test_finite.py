"""Nothing that is not finite is kept: not in weights, not in checkpoints, not as a score, not as the best."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from amsd.errors import Diverged, RunError
from amsd.experiment.sample import SampleRequest, sample
from amsd.experiment.train import train
from amsd.recipe import Recipe
from amsd.rewards.combination import Term, WeightedReward
from amsd.run_directory import RunDirectory, damage
from amsd.training import processes
from amsd.training.guard import UpdateGuard, require_finite_weights
from tests import pipelines
from tests.experiment.test_train import lines, recipe

OPTIMIZER = {"learning_rate": 1e-3, "prompts_per_step": 4, "micro_batch": 4, "warmup_steps": 0}


def every_number(run: RunDirectory) -> Iterator[tuple[str, torch.Tensor]]:
    for step in run.steps():
        for file in run.checkpoint(step).rglob("*.safetensors"):
            for name, value in load_file(file).items():
                yield f"{file.relative_to(run.path)}: {name}", value


def require_sound(run: RunDirectory) -> None:
    assert [name for name, value in every_number(run) if not value.double().isfinite().all()] == []
    assert [step for step in run.steps() if damage(run.checkpoint(step))] == []
    for name in ("best", "latest"):
        file = run.checkpoints / name
        assert not file.exists() or run.pointer(name) is not None


@pytest.mark.parametrize("rate", [1e38, 1e25, 1e12])
@pytest.mark.parametrize("every", [0, 1])
def test_an_absurd_learning_rate_leaves_no_checkpoint_and_no_best(
    model: Path, tmp_path: Path, rate: float, every: int
) -> None:
    """1e38: the weights overflow. 1e12: they are finite, and nothing that they draw is."""
    chosen = recipe(
        model,
        optimizer=OPTIMIZER | {"learning_rate": rate},
        training={"steps": 3, "checkpoint_every": 1, "keep": 1, "ema_decay": 0.5},
        evaluation={"every": every},
    )
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(RunError, match="not finite"):
        train(chosen, run.path, resume=False)
    require_sound(run)
    assert run.steps() == []
    assert run.pointer("best") is None
    with pytest.raises(RunError, match="not finite"):  # from the start again: the same run, and not a broken folder
        train(chosen, run.path, resume=True)


def averaged(model: Path) -> Recipe:
    return recipe(
        model,
        training={"steps": 4, "checkpoint_every": 2, "keep": 5, "ema_decay": 0.5},
        evaluation={"samples_per_prompt": 1, "diversity": []},
    )


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = RunDirectory(tmp_path_factory.mktemp("whole") / "run")
    train(averaged(model), run.path, resume=False)
    return run


@pytest.mark.parametrize("what", ["weights", "gradient", "average", "moments"])
def test_after_a_step_that_broke_the_last_good_checkpoint_is_best_and_a_resume_is_exact(
    model: Path, whole: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    chosen = averaged(model)
    run = RunDirectory(tmp_path / "run")
    with monkeypatch.context() as patch:
        _break(patch, what, at=4)
        with pytest.raises(RunError, match=r"Step 4.*not finite|Step 4.*gradient is (nan|inf)"):
            train(chosen, run.path, resume=False)
    require_sound(run)
    assert run.steps() == [2]
    assert run.pointer("best") == run.pointer("latest") == run.checkpoint(2)
    train(chosen, run.path, resume=True)
    assert lines(run.path) == lines(whole.path)
    ours = dict(every_number(run))
    assert all(torch.equal(ours[name], value) for name, value in every_number(whole))


def _break(patch: pytest.MonkeyPatch, what: str, at: int) -> None:
    """Put one infinity into the optimizer step number `at`."""
    if what == "gradient":
        _spoil_gradients(patch, {at})
        return
    step, count = torch.optim.AdamW.step, [0]

    def stepped(self: torch.optim.AdamW, *given: Any, **named: Any) -> Any:
        result = step(self, *given, **named)
        count[0] += 1
        parameter = self.param_groups[0]["params"][-1]
        if count[0] == at and what == "weights":
            parameter.data.flatten()[0] = float("inf")
        if count[0] == at and what == "moments":
            self.state[parameter]["exp_avg_sq"].flatten()[0] = float("nan")
        return result

    patch.setattr(torch.optim.AdamW, "step", stepped)
    if what == "average":
        from amsd.training.optimization import WeightAverage

        update = WeightAverage.update

        def updated(self: WeightAverage) -> None:
            update(self)
            if count[0] == at:
                self.shadow[-1].flatten()[0] = float("nan")

        patch.setattr(WeightAverage, "update", updated)


def _spoil_gradients(patch: pytest.MonkeyPatch, at: set[int]) -> None:
    summed, count = processes.sum_gradients, [0]

    def spoiled(parameters: Any) -> None:
        parameters = list(parameters)
        summed(parameters)
        count[0] += 1
        if count[0] in at:
            parameters[0].grad.flatten()[0] = float("inf")

    patch.setattr(processes, "sum_gradients", spoiled)


def test_a_key_leaves_such_updates_out_and_counts_them(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_with(spoiled: set[int], allowed: int, steps: int, name: str) -> RunDirectory:
        chosen = recipe(
            model,
            optimizer=OPTIMIZER | {"max_skipped_updates": allowed},
            evaluation={"every": 0},
            training={"steps": steps, "checkpoint_every": 1, "keep": 9, "ema_decay": 0.5},
        )
        with monkeypatch.context() as patch:
            _spoil_gradients(patch, spoiled)
            train(chosen, tmp_path / name, resume=False)
        return RunDirectory(tmp_path / name)

    run = run_with({2, 3}, allowed=2, steps=4, name="skipped")
    require_sound(run)
    logged = {line["step"]: line for line in lines(run.path) if "loss" in line}
    assert [step for step, line in logged.items() if "update_skipped" in line] == [2, 3]
    assert logged[2]["gradient_norm"] is None
    told = [line["step"] for line in lines(run.path) if line.get("notice") == "update-skipped"]
    assert told == [2, 3]
    first, *others = (load_file(_weights(run, step)) for step in (1, 2, 3, 4))
    for same in others[:2]:
        assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], others[2][name]) for name in first)
    with pytest.raises(RunError, match=r"Step 4.*gradient is inf, like 2 before it"):
        run_with({2, 3, 4}, allowed=2, steps=5, name="ended")
    assert RunDirectory(tmp_path / "ended").steps() == [1, 2, 3]


def _weights(run: RunDirectory, step: int) -> Path:
    return run.checkpoint(step) / "unet" / "diffusion_pytorch_model.safetensors"


def test_a_loss_that_is_not_finite_is_left_out_too(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from amsd.training.methods.adjoint_matching import AMTrainer

    matched = AMTrainer.match

    def overflowing(self: AMTrainer, items: Any, weigh: bool) -> Any:
        from dataclasses import replace

        found = matched(self, items, weigh)
        return replace(found, loss=found.loss * float("inf")) if self.step + 1 == 2 else found

    monkeypatch.setattr(AMTrainer, "match", overflowing)
    settings: dict[str, Any] = {"evaluation": {"every": 0}, "training": {"steps": 3, "checkpoint_every": 1, "keep": 9}}
    with pytest.raises(RunError, match=r"Step 2, phase loss: the loss is not finite .*'"):
        train(recipe(model, **settings), tmp_path / "ended", resume=False)
    assert RunDirectory(tmp_path / "ended").steps() == [1]
    chosen = recipe(model, optimizer=OPTIMIZER | {"max_skipped_updates": 1}, **settings)
    train(chosen, tmp_path / "skipped", resume=False)
    run = RunDirectory(tmp_path / "skipped")
    require_sound(run)
    state = json.loads((run.checkpoint(3) / "state" / "trainer.json").read_text(encoding="utf-8"))
    assert state["threshold"]["batches"] == 2  # the quantile has not seen the loss that was left out


def test_pictures_that_are_not_finite_are_never_scored(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint whose pictures are not finite is taken back, and the one before stays best."""
    from amsd.diffusion.families import family_for
    from amsd.diffusion.families.base import Family
    from amsd.training.keeper import Keeper

    kind: type[Family] = type(family_for(pipelines.stable_diffusion()))
    decode: Callable[..., torch.Tensor] = kind.decode
    score = Keeper.score
    run = RunDirectory(tmp_path / "run")
    scored = [0]

    # Not by the folder of step 4: a checkpoint is written while it is scored, so the folder may come later.
    def scoring(self: Keeper, record: Any) -> None:
        scored[0] = record.step
        score(self, record)

    def overflowing(self: Any, latents: torch.Tensor) -> torch.Tensor:
        images = decode(self, latents)
        return images * float("nan") if scored[0] == 4 else images

    monkeypatch.setattr(Keeper, "score", scoring)
    monkeypatch.setattr(kind, "decode", overflowing)
    chosen = recipe(model)
    with pytest.raises(Diverged, match=r"images are not finite and are not scored \('a blue square'") as failure:
        train(chosen, run.path, resume=False)
    assert "amsd removed the checkpoint of step 4; the newest is now step-000002." in str(failure.value)
    assert run.steps() == [2]
    assert run.pointer("best") == run.checkpoint(2)
    assert "4" not in json.loads((run.checkpoints / "scores.json").read_text(encoding="utf-8"))


def test_no_reward_sees_an_image_that_is_not_finite() -> None:
    class Lenient:
        name, version, calls = "lenient", "1", 0

        def __call__(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
            self.calls += 1
            return images.nan_to_num().mean((1, 2, 3))

    reward: Any = Lenient()
    images = torch.full((2, 3, 4, 4), 0.5)
    images[1, 0, 0, 0] = float("nan")
    with pytest.raises(Diverged, match="'a dog'"):
        WeightedReward([Term(reward)])(images, ["a cat", "a dog"])
    assert reward.calls == 0


def test_sample_draws_no_black_pictures_from_broken_weights(model: Path, tmp_path: Path) -> None:
    pipeline = pipelines.stable_diffusion(scheduler=pipelines.ddim())
    next(pipeline.unet.parameters()).data.fill_(1e30)  # finite: weights that are not are refused when they are read
    pipeline.save_pretrained(tmp_path / "broken")
    with pytest.raises(Diverged, match="'a cat'"):
        sample(recipe(tmp_path / "broken"), None, SampleRequest(("a cat",)), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.png"))


def test_the_guard_counts_in_a_row_only() -> None:
    guard = UpdateGuard(patience=1)
    assert [guard.admits(norm, 1) for norm in (1.0, float("nan"), 2.0, float("inf"), 0.0)] == [1, 0, 1, 0, 1]
    with pytest.raises(RunError, match="step 9".capitalize()):
        [guard.admits(float("nan"), step) for step in (8, 9)]


def test_weights_are_named() -> None:
    good, bad = torch.ones(3), torch.tensor([1.0, float("-inf")])
    require_finite_weights({"a": good}, 1, "weights")
    require_finite_weights({}, 1, "weights")
    with pytest.raises(RunError, match=r"Step 7: the averaged weights .* \(b\.weight\)"):
        require_finite_weights({"a": good, "b.weight": bad}, 7, "averaged weights")
