"""Every recipe that ships with amsd, and the schema beside them."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from amsd.recipe import Recipe, dump_toml, from_dict, identity, load_recipe
from amsd.recipe.catalog import folder, names
from amsd.recipe.json_schema import schema_text
from amsd.recipe.rules import warnings

FILES = sorted(folder("recipes").glob("*.toml"))
REFERENCE = ("sd15-am", "sd15-buffer-am", "sd15-single-prompt")


def test_all_of_them_are_here() -> None:
    assert names("recipes") == sorted(path.stem for path in FILES)
    assert {"shapes", "shapes-lora", "shapes-buffer", *REFERENCE} <= set(names("recipes"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
class TestShippedRecipe:
    def test_loads_by_path_and_by_name(self, path: Path) -> None:
        assert load_recipe(path) == load_recipe(path.stem)

    def test_survives_the_way_through_toml(self, path: Path) -> None:
        recipe = load_recipe(path)
        text = dump_toml(recipe)
        assert from_dict(tomllib.loads(text)) == recipe
        assert dump_toml(from_dict(tomllib.loads(text))) == text

    def test_a_dump_hides_no_default(self, path: Path) -> None:
        dumped = tomllib.loads(dump_toml(load_recipe(path)))
        assert set(dumped) == (set(Recipe.model_fields) - {"origin"}) | {"format"}
        assert dumped["optimizer"]["epsilon"] == 1e-8

    def test_gives_no_warning(self, path: Path) -> None:
        assert warnings(load_recipe(path)) == []

    @pytest.mark.parametrize("method", ["am", "eam", "ram", "ddpo"])
    def test_a_single_loss_step_is_warned_of(self, path: Path, method: str) -> None:
        key = "method.timesteps_per_trajectory"
        changed = ["method.name=" + method, key + "=1"]
        assert [each.value for each in warnings(load_recipe(path, changed)) if each.key == key] == [1]

    def test_opens_with_its_schema_and_a_sentence(self, path: Path) -> None:
        schema, comment, *_ = path.read_text(encoding="utf-8").splitlines()
        assert schema == "#:schema ./schema.json"
        assert comment.startswith("# ")


def test_no_two_are_the_same_run() -> None:
    assert len({identity(load_recipe(path)) for path in FILES}) == len(FILES)


@pytest.mark.parametrize("name", REFERENCE)
def test_settings_of_the_reference(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.model.pretrained == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert [term.name for term in recipe.reward] == ["imagereward"]
    schedule, method, optimizer = recipe.schedule, recipe.method, recipe.optimizer
    assert (schedule.beta_start, schedule.beta_end, schedule.num_inference_steps) == (0.002, 0.009, 50)
    assert (schedule.timestep_spacing, schedule.final_step, schedule.eta) == ("trailing", "midpoint", 1.0)
    assert (method.reward_multiplier, method.timesteps_per_trajectory) == (100.0, 4)
    assert recipe.model.precision == "bf16"
    assert (method.per_sample_threshold_quantile, method.adjoint_at) == (0.9, "next")
    assert (optimizer.betas, optimizer.warmup_steps, optimizer.micro_batch) == ((0.9, 0.95), 20, 5)
    assert optimizer.learning_rate == (1e-5 if name == "sd15-single-prompt" else 3e-6)
    assert (optimizer.weight_decay, optimizer.gradient_clip) == (0.0, 0.0)
    assert optimizer.prompts_per_step == (100 if name == "sd15-buffer-am" else 125)
    assert (recipe.evaluation.eta, recipe.evaluation.diversity) == ((0.0, 1.0), ("dreamsim",))
    assert "clip-score" in recipe.evaluation.metrics
    assert "pyiqa:musiq" in recipe.evaluation.metrics
    if name == "sd15-buffer-am":
        assert (method.name, method.buffer.size, method.buffer.passes) == ("buffer-am", 100, 10)


def test_the_schema_file_is_up_to_date() -> None:
    file = folder("recipes") / "schema.json"
    stored, made = (json.loads(text, object_hook=_said) for text in (file.read_text(encoding="utf-8"), schema_text()))
    assert stored == made, "run: amsd recipe schema > recipes/schema.json"


def _said(node: dict[str, Any]) -> dict[str, Any]:
    """Without `additionalProperties: true`, the default, which older pydantic leaves out (it also writes 0.0 for 0)."""
    return {key: value for key, value in node.items() if (key, value) != ("additionalProperties", True)}


def test_the_schema_names_every_section_and_refuses_others() -> None:
    schema = json.loads(schema_text())
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["reward"]
