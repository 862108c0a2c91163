"""Two recipes have one identity exactly if they train the same weights."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from amsd.recipe import BufferedAdjointMatching, dump_toml, from_dict, identity, load_recipe
from amsd.recipe.catalog import find
from amsd.recipe.identity import as_started
from amsd.recipe.load import read_run
from amsd.sweep.load import load_plan, restore_plan


def changed(*assignments: str, recipe: str = "shapes") -> bool:
    return identity(load_recipe(recipe, assignments)) != identity(load_recipe(recipe))


def test_form() -> None:
    assert re.fullmatch(r"[0-9a-f]{12}", identity(load_recipe("shapes")))


def test_keys_that_came_later_leave_older_runs_their_identity() -> None:
    # Of a run of recipes/shapes.toml made before model.config, model.vae_tiling, model.size, method.outliers and
    # method.outlier_threshold existed.
    assert identity(load_recipe("shapes", ["method.outlier_threshold=current"])) == "4b7e23fb73c8"


def test_a_run_that_lacks_a_key_is_read_and_continued_as_it_was_meant(tmp_path: Path) -> None:
    tree = load_recipe("shapes", ["method.outlier_threshold=current"])
    lines = [line for line in dump_toml(tree).splitlines() if not line.startswith("outlier_threshold")]
    (tmp_path / "recipe.toml").write_text("\n".join(lines), encoding="utf-8")
    run = read_run(tmp_path / "recipe.toml")
    assert identity(run) == "4b7e23fb73c8"
    assert identity(as_started(load_recipe("shapes"), run)) == "4b7e23fb73c8"
    explicit = load_recipe("shapes", ["method.outlier_threshold=previous"])
    assert identity(as_started(explicit, run)) == identity(explicit) != "4b7e23fb73c8"


def older(lines: list[str]) -> list[str]:
    """A resolved recipe as it was written before recipes had a format and `method.outlier_threshold` existed."""
    return [line for line in lines if not line.startswith(("format", "outlier_threshold"))]


@pytest.mark.parametrize("recipe", ["shapes", "shapes-buffer", "shapes-lora"])
def test_a_resolved_recipe_of_before_trains_as_it_did(tmp_path: Path, recipe: str) -> None:
    meant = load_recipe(recipe, ["method.outlier_threshold=current"])
    written = dump_toml(load_recipe(recipe)).splitlines()
    file = tmp_path / "mine.toml"
    file.write_text("\n".join(older(written)), encoding="utf-8")
    assert identity(load_recipe(file)) == identity(meant)
    assert identity(load_recipe(file, ["method.outlier_threshold=previous"])) == identity(load_recipe(recipe))
    file.write_text("\n".join(["format = 1", *older(written)]), encoding="utf-8")
    assert identity(load_recipe(file)) == identity(meant)


def test_a_recipe_that_a_person_wrote_has_the_defaults_of_today() -> None:
    source = Path(find("shapes", "recipes")).read_text(encoding="utf-8")
    assert "outlier_threshold" not in source
    assert "format" not in source
    assert load_recipe("shapes").method.model_dump()["outlier_threshold"] == "previous"
    every_key = {"name": "eam", "reward_multiplier": 1.0, "timesteps_per_trajectory": 2, "sampler_decay": 0.5}
    written = {"method": {**every_key, "endpoint_level": 0.4}, "reward": [{"name": "brightness"}]}
    assert from_dict(written).method.model_dump()["reward_at"] == "clean"


def test_a_plan_of_before_searches_as_it_did() -> None:
    plan = load_plan("cfg-eta")
    settings = {"schedule.eta": 0.5}
    current = load_plan("cfg-eta", ["override.method.outlier_threshold=current"]).resolve(settings)
    data = plan.dump()
    assert identity(restore_plan(data).resolve(settings)) == identity(plan.resolve(settings))
    del data["format"]
    assert identity(restore_plan(data).resolve(settings)) == identity(current)


def test_what_becomes_of_outliers_is_inert_where_nothing_is_one() -> None:
    off = "method.per_sample_threshold_quantile=-1.0"
    same = [identity(load_recipe("shapes", [off, f"method.outliers={kind}"])) for kind in ("mask", "clip")]
    assert same[0] == same[1]


@pytest.mark.parametrize(
    "assignment",
    [
        "optimizer.micro_batch=4",
        "training.checkpoint_every=3",
        "training.keep=7",
        "training.gradient_checkpointing=true",
        "training.compile=true",
        "training.collection_batch=3",
        "training.background_checkpoints=false",
        "training.validate_every=5",
        "tracking.project=other",
        "tracking.mode=disabled",
        "tracking.tags=['a']",
        "evaluation.samples_per_prompt=9",
        "evaluation.eta=[0.0, 1.0]",
        "evaluation.metrics=['brightness']",
        # Not used by this recipe:
        "method.buffer.size=32",
        "model.lora.rank=2",
        # Restating a default:
        "schedule.timestep_spacing=trailing",
        "optimizer.learning_rate=0.0004",
        "model.lora={}",
    ],
)
def test_unchanged_by(assignment: str) -> None:
    assert not changed(assignment)


@pytest.mark.parametrize(
    "assignment",
    [
        "training.seed=1",
        "training.steps=33",
        "training.ema_decay=0.9",
        "schedule.eta=0.7",
        "schedule.num_inference_steps=11",
        "schedule.final_step=midpoint",
        "guidance.guidance_scale=5.0",
        "method.reward_multiplier=26.0",
        "method.adjoint_at=current",
        "method.outliers=clip",
        "method.outlier_threshold=current",
        "method.step_weights=balanced",
        "method.smoothing.noise_std=0.1",
        "reward[0].weight=2.0",
        "reward[0].name=shapes:area",
        "prompts.dropout=0.2",
        "prompts.train=['a red circle']",
        "optimizer.prompts_per_step=32",
        "optimizer.learning_rate=1e-4",
        "model.precision=bf16",
        "model.parameterization=lora",
    ],
)
def test_changed_by(assignment: str) -> None:
    assert changed(assignment)


@pytest.mark.parametrize("scale", ["1", "1.0"])
@pytest.mark.parametrize("flag", ["guidance_in_adjoint_computation", "guidance_in_control_computation"])
def test_guidance_flags_are_inert_without_guidance(scale: str, flag: str) -> None:
    recipe = load_recipe("shapes", [f"guidance.guidance_scale={scale}", f"guidance.{flag}=true"])
    assert getattr(recipe.guidance, flag) is False
    assert identity(recipe) == identity(load_recipe("shapes"))


def test_guidance_flags_count_with_guidance() -> None:
    plain = load_recipe("shapes", ["guidance.guidance_scale=5.0"])
    flags = ["guidance.guidance_in_adjoint_computation=true", "guidance.guidance_in_control_computation=true"]
    guided = [load_recipe("shapes", ["guidance.guidance_scale=5.0", *flags[:count]]) for count in (1, 2)]
    assert len({identity(recipe) for recipe in (plain, *guided)}) == 3


def test_the_buffer_counts_where_it_is_used() -> None:
    assert changed("method.buffer.passes=3", recipe="shapes-buffer")
    assert changed("method.buffer.size=64", recipe="shapes-buffer")


def test_an_unset_buffer_is_one_optimizer_step() -> None:
    name = "method.name=buffer-am"
    buffered = load_recipe("sd15-am", [name]).method
    assert isinstance(buffered, BufferedAdjointMatching)
    assert buffered.buffer.size == 125
    assert identity(load_recipe("sd15-am", [name])) == identity(
        load_recipe("sd15-am", [name, "method.buffer.size=125"])
    )


def test_the_adapter_counts_where_it_is_used() -> None:
    assert changed("model.lora.rank=4", recipe="shapes-lora")


def test_order_of_keys_and_assignments_does_not_matter() -> None:
    there = load_recipe("shapes", ["schedule.eta=0.7", "training.seed=3"])
    back = load_recipe("shapes", ["training.seed=3", "schedule.eta=0.7"])
    assert identity(there) == identity(back)
