"""Sweep files: both ways to write keys, conditions, problems with key paths, every shipped sweep."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from amsd.errors import UsageError
from amsd.recipe import RecipeError
from amsd.recipe.catalog import folder, names
from amsd.recipe.cost import training_cost
from amsd.recipe.load import read_toml
from amsd.sweep.checks import require_inputs
from amsd.sweep.display import outline
from amsd.sweep.load import load_plan, plan_from, restore_plan
from amsd.sweep.schema import SweepPlan
from amsd.sweep.search import grid, settings_of
from tests import pipelines

BASE = read_toml(folder("recipes") / "shapes.toml")
ETA = "[search]\nschedule.eta = { choices = [1.0] }\n"
HEAD = 'name = "s"\nrecipe = "shapes"\nbudget.trials = 3\n'
OBJECTIVE = '[[objective]]\nmetric = "shapes:right"\n'


def plan_of(text: str, base: dict[str, object] = BASE) -> SweepPlan:
    return plan_from(tomllib.loads(HEAD + text), base)


def problems_of(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        plan_of(text)
    return str(caught.value)


@pytest.mark.parametrize("name", names("sweeps"))
def test_every_shipped_sweep_loads_and_survives_the_storage(name: str) -> None:
    plan = load_plan(name)
    assert plan.sweep.name == name
    assert restore_plan(plan.dump()) == plan


def test_shipped_sweeps_have_their_twins() -> None:
    shipped = set(names("sweeps"))
    assert {"shapes-smoke", "cfg-modes", "cfg-eta", "lambda-pareto"} <= shipped
    assert {"sd15-smoke", "sd15-cfg-modes", "sd15-cfg-eta", "sd15-lambda-pareto"} <= shipped


def test_a_distance_to_the_base_is_minimized() -> None:
    base = {**BASE, "evaluation": {**BASE["evaluation"], "distance": ["shapes:classifier"]}}
    text = ETA + '[[objective]]\nmetric = "kid/shapes:classifier"\n'
    assert plan_of(text + 'direction = "minimize"\n', base).sweep.objective[0].label == "kid/shapes:classifier"
    assert "is not evaluated by the base recipe" in problems_of(text + 'direction = "minimize"\n')
    with pytest.raises(RecipeError) as caught:
        plan_of(text + 'value = "difference"\n', base)
    assert {problem.key for problem in caught.value.problems} == {"objective[0].direction", "objective[0].value"}


def test_nested_and_quoted_keys_are_the_same() -> None:
    nested = plan_of("[search]\nschedule.eta = { low = 0.5, high = 1.0 }\n" + OBJECTIVE)
    quoted = plan_of('[search."schedule.eta"]\nlow = 0.5\nhigh = 1.0\n' + OBJECTIVE)
    assert nested == quoted


def test_grid_leaves_inactive_dimensions_out() -> None:
    plan = plan_of(
        "[search]\nguidance.guidance_scale = { choices = [1.0, 5.0] }\n"
        "guidance.guidance_in_adjoint_computation = { choices = [false, true], "
        'when."guidance.guidance_scale".above = 1.0 }\n'
        "schedule.eta = { choices = [0.5, 1.0] }\n" + OBJECTIVE
    )
    # Scale 1: two etas; scale 5: two flags x two etas.
    assert len(list(grid(plan.sweep.search))) == 2 + 4
    assert all(
        ("guidance.guidance_in_adjoint_computation" in point) == (point["guidance.guidance_scale"] > 1)
        for point in grid(plan.sweep.search)
    )


def test_variants_set_several_keys() -> None:
    sweep = load_plan("cfg-modes").sweep
    settings = settings_of(sweep.search, {"mode": "full CFG", "schedule.eta": 0.7})
    assert settings == {
        "guidance.guidance_scale": 5.0,
        "guidance.guidance_in_adjoint_computation": True,
        "guidance.guidance_in_control_computation": True,
        "schedule.eta": 0.7,
    }
    assert len(list(grid(sweep.search))) == 3 * len(sweep.search["schedule.eta"].choices or ())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[search]\nschedule.etaa = { choices = [1.0] }\n" + OBJECTIVE, "etaa: unknown key. Did you mean 'eta'?"),
        ("[search]\nschedule.eta = { low = 0.0, high = 1.0 }\n" + OBJECTIVE, "schedule.eta: must be above 0"),
        ("[search]\nschedule.eta = { low = 2.0, high = 1.0 }\n" + OBJECTIVE, "low = 2 must lie below high = 1"),
        ("[search]\nschedule.eta = { low = 0.0, high = 1.0, log = true }\n" + OBJECTIVE, "must start above 0"),
        ("[search]\nschedule.eta = { choices = [1.0], low = 2.0 }\n" + OBJECTIVE, "exactly one of"),
        ('[search]\nmethod.name = { choices = ["am", "amm"] }\n' + OBJECTIVE, "Did you mean 'am'?"),
        ("[search]\ntraining.seed = { choices = [1] }\n" + OBJECTIVE, "Use seeds for repetitions"),
        (ETA + '[[objective]]\nmetric = "shapes:rigth"\n', "Did you mean 'shapes:right'?"),
        (ETA + OBJECTIVE + "[[first]]\nschedule.eta = 0.5\n", "first[0].schedule.eta: is not a value"),
        ("[search]\nschedule.eta = { choices = [1.0], when.mode.above = 1.0 }\n" + OBJECTIVE, "names no dimension"),
        (ETA + 2 * OBJECTIVE, "the same objective is listed twice"),
        (ETA + '[pruner]\nname = "median"\n' + OBJECTIVE
         + '[[objective]]\nmetric = "train/kl"\n', "only a single objective can be pruned"),
        (ETA + "[execution]\nlost_after_seconds = 1.0\n" + OBJECTIVE, "at least twice"),
        ("serch = 1\n" + ETA + OBJECTIVE, "Did you mean 'search'?"),
    ],
)  # fmt: skip
def test_problems_say_key_value_and_way_out(text: str, expected: str) -> None:
    assert expected in problems_of(text)


def test_a_sweep_without_an_end_is_refused() -> None:
    tree = tomllib.loads(
        'name = "s"\nrecipe = "shapes"\n[search]\nschedule.eta = { low = 0.5, high = 1.0 }\n' + OBJECTIVE
    )
    with pytest.raises(RecipeError, match="only a grid ends by itself"):
        plan_from(tree, BASE)


def test_the_outline_counts_points_seeds_and_cost() -> None:
    plan = plan_of("seeds = [0, 1]\n" + ETA + OBJECTIVE)
    points, cost = outline(plan)
    assert points.endswith(": 3 points x 2 seeds")
    assert f" about {6 * training_cost(plan.recipe):,.0f} network forward-equivalents" in cost


def test_the_outline_of_a_grid_counts_copies_once() -> None:
    points, *rest = outline(load_plan("cfg-modes"))
    assert points.startswith("cfg-modes: 12 points x 3 seeds")
    assert not any("takes over" in line for line in rest)


def test_a_sweep_says_before_its_first_trial_what_each_training_would_say() -> None:
    notices = require_inputs(plan_of(OBJECTIVE + "[search]\noptimizer.warmup_steps = { choices = [0, 5000] }\n"), False)
    assert len([text for text in notices if "is longer than the run of" in text]) == 1


def test_a_sweep_looks_at_the_models_own_files(tmp_path: Path) -> None:
    pipelines.stable_diffusion().save_pretrained(tmp_path)
    base = {**BASE, "model": {"pretrained": str(tmp_path)}, "prompts": {"train": ["a cat " * 20], "evaluation": ["x"]}}
    plan = plan_of(OBJECTIVE + ETA, base)
    assert any("longer than the 16 tokens that the text encoder reads" in text for text in require_inputs(plan, False))
    (tmp_path / "vae" / "config.json").unlink()
    with pytest.raises(UsageError, match=r"sweep s: .*vae.config\.json does not exist"):
        require_inputs(plan, False)


def test_a_sweep_looks_at_what_its_trainings_begin_from(tmp_path: Path) -> None:
    """Of the embedded models too, whose own files need no look."""
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    down, up = torch.full((1, 8), torch.nan), torch.zeros(8, 1)
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, tmp_path / "lora.safetensors")
    base = {**BASE, "model": {"pretrained": "embedded:shapes", "start": str(tmp_path / "lora.safetensors")}}
    with pytest.raises(UsageError, match=r"sweep s: model\.start = .*lora_A\.weight are not finite"):
        require_inputs(plan_of(OBJECTIVE + ETA, base), False)


EMPTY = {
    "name": 'name = ""', "name, blank": 'name = "  "', "recipe": 'recipe = ""',
    "objective[0].metric": '[[objective]]\nmetric = ""', "objective[0].setting":
    '[[objective]]\nmetric = "shapes:right"\nsetting = ""', "constraint[0].metric":
    '[[constraint]]\nmetric = " "\nat_most = 1.0', 'search.""': '[search]\n"" = { choices = [1.0] }',
    'search.kind.variants.""': '[search.kind.variants]\n"" = { "schedule.eta" = 0.5 }\nb = { "schedule.eta" = 1.0 }',
    'search.kind.variants.a.""': '[search.kind.variants]\na = { "" = 0.5 }\nb = { "schedule.eta" = 1.0 }',
    'search.schedule.eta.when.""': '[search."schedule.eta"]\nchoices = [1.0]\nwhen = { "" = { above = 1.0 } }',
    "slurm.partition": 'slurm.partition = ""', "slurm.account": 'slurm.account = ""', "slurm.qos": 'slurm.qos = ""',
    "slurm.gres": 'slurm.gres = ""', "slurm.constraint": 'slurm.constraint = ""', "slurm.exclude": 'slurm.exclude = ""',
    'slurm.options.""': 'slurm.options = { "" = 1 }', "execution.command": 'execution.command = [""]',
}  # fmt: skip


@pytest.mark.parametrize("key", EMPTY)
def test_an_empty_name_is_refused_by_its_key_and_file(key: str, tmp_path: Path) -> None:
    whole = {"name": 'name = "s"', "recipe": 'recipe = "shapes"', "objective": OBJECTIVE, "search": ETA}
    part = re.split(r"[.\[,]", key)[0]
    head, tail = [], []
    for text in {**whole, part: EMPTY[key]}.values():
        (tail if text.startswith("[") else head).append(text)
    file = tmp_path / "mine.toml"
    file.write_text("\n".join([*head, *tail]), encoding="utf-8")
    with pytest.raises(RecipeError) as refused:
        load_plan(file)
    assert str(refused.value).startswith(f"mine.toml: 1 problem\n  {key.partition(',')[0]}: names nothing")


def test_an_objective_of_the_training_log_names_a_scalar() -> None:
    assert "objective[0].metric: names no scalar" in problems_of(ETA + '[[objective]]\nmetric = "train/"\n')


def test_an_empty_text_may_be_a_choice() -> None:
    """Such as no negative prompt; whether the recipe takes it is the recipe's to say."""
    plan_of('[search]\nguidance.negative_prompt = { choices = ["", "ugly"] }\n' + OBJECTIVE)
    assert "model.pretrained: names nothing" in problems_of(
        '[search]\nmodel.pretrained = { choices = ["", "embedded:shapes"] }\n' + OBJECTIVE
    )
