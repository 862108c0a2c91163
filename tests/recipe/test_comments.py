"""`amsd recipe show`: the resolved recipe with what its keys mean."""

from __future__ import annotations

import tomllib

import pytest
from typer.testing import CliRunner

from amsd.cli.app import app
from amsd.recipe import dump_toml, from_dict, load_recipe
from amsd.recipe.catalog import names
from amsd.recipe.comments import with_comments


@pytest.mark.parametrize("name", names("recipes"))
def test_a_commented_recipe_is_the_same_recipe(name: str) -> None:
    recipe = load_recipe(name)
    assert from_dict(tomllib.loads(with_comments(recipe))) == recipe


def test_every_described_key_is_explained_above_its_line() -> None:
    lines = CliRunner().invoke(app, ["recipe", "show", "sd15-lora"]).stdout.splitlines()
    above: dict[str, str] = {}
    for index, line in enumerate(lines[1:]):
        above.setdefault(line.partition(" = ")[0], lines[index])
    assert above["reward_multiplier"].startswith("# ")  # of the method that was chosen
    assert above["rank"] == "# LoRA rank r."
    assert above["eta"].startswith("# Noise level: 1 is memoryless")
    assert above["[model.lora]"].startswith("# Low-rank adapters")
    assert above["guidance_scale"] == "# Scale of the sampled trajectories; 1.0 means no guidance."
    assert max(map(len, lines)) < 200


def test_comments_can_be_left_out() -> None:
    plain = CliRunner().invoke(app, ["recipe", "show", "shapes", "--no-comments"]).stdout
    assert plain == dump_toml(load_recipe("shapes"))


def test_every_key_of_every_table_is_explained() -> None:
    """But the name of the method, which the comment of its table says."""
    lines = CliRunner().invoke(app, ["recipe", "show", "shapes-buffer"]).stdout.splitlines()
    bare = [line for before, line in zip(["", *lines], lines, strict=False)
            if " = " in line and not line.startswith(("#", " ")) and not before.startswith("#")]  # fmt: skip
    assert [line.partition(" = ")[0] for line in bare] == ["format", "name"]


def test_short_lists_take_one_line_and_empty_tables_none() -> None:
    shown = CliRunner().invoke(app, ["recipe", "show", "sd15-lora"]).stdout
    assert 'targets = ["to_q", "to_k", "to_v", "to_out.0"]' in shown
    assert "betas = [0.9, 0.95]" in shown
    assert "[evaluation.options]" not in shown
    assert "[code]" not in shown
    many = [f"prompt {n}, of a long list" for n in range(30)]
    assert '\n    "prompt 7, of a long list",\n' in with_comments(load_recipe("shapes", [f"prompts.train={many}"]))
