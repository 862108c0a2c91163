"""`--set key=value`: how the text is read, and where the value goes."""

from __future__ import annotations

import copy
import json
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amsd.recipe import Recipe, RecipeError, dump_toml, from_dict, load_recipe, parse_assignment
from amsd.recipe.load import assign


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("schedule.eta=0.7", "schedule.eta", 0.7),
        ("schedule.eta = 0.7", "schedule.eta", 0.7),
        ("optimizer.learning_rate=1e-4", "optimizer.learning_rate", 1e-4),
        ("training.steps=7", "training.steps", 7),
        ("training.compile=true", "training.compile", True),
        ('tracking.name="7"', "tracking.name", "7"),
        ("tracking.name=a run", "tracking.name", "a run"),
        ("model.pretrained=stable-diffusion-v1-5/stable-diffusion-v1-5", "model.pretrained",
         "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        ("prompts.train=embedded:shapes", "prompts.train", "embedded:shapes"),
        ("evaluation.eta=[0.0, 1.0]", "evaluation.eta", [0.0, 1.0]),
        ("optimizer.betas=[0.9,0.99]", "optimizer.betas", [0.9, 0.99]),
        ("reward[0].options={a = 1}", "reward[0].options", {"a": 1}),
        ("tracking.name=a=b", "tracking.name", "a=b"),
        ("tracking.name=", "tracking.name", ""),
        ("training.compile=True", "training.compile", "True"),  # no TOML: a text, which the schema then refuses
    ],
)  # fmt: skip
def test_reading(text: str, key: str, value: object) -> None:
    found_key, found = parse_assignment(text)
    assert (found_key, found, type(found)) == (key, value, type(value))


@pytest.mark.parametrize("text", ["schedule.eta", "", "=1", "  = 1", "schedule.eta 0.7"])
def test_no_assignment_at_all(text: str) -> None:
    with pytest.raises(RecipeError, match="must have the form key=value"):
        parse_assignment(text)


def _tree() -> dict[str, Any]:
    return {"schedule": {"eta": 1.0}, "reward": [{"name": "a"}, {"name": "b", "weight": 2.0}]}


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("schedule.eta", ("schedule", "eta")),
        ("training.seed", ("training", "seed")),
        ("method.buffer.size", ("method", "buffer", "size")),
        ("reward.1.weight", ("reward", 1, "weight")),
        ("reward[0].name", ("reward", 0, "name")),
        ("reward[1]", ("reward", 1)),
    ],
)
def test_it_changes_one_place_only(key: str, path: tuple[str | int, ...]) -> None:
    tree = _tree()
    assign(tree, key, "new")
    node: Any = tree
    for part in path:
        node = node[part]
    assert node == "new"
    if "reward" not in key:
        assert tree["reward"] == _tree()["reward"]
    if "schedule" not in key:
        assert tree["schedule"] == _tree()["schedule"]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("reward[2].weight", "no such entry; there are 2"),
        ("reward.first.weight", "no such entry; there are 2"),
        ("schedule.eta.value", "its parent is a value, not a table"),
    ],
)
def test_places_that_do_not_exist(key: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        assign(_tree(), key, 1)


def test_the_last_assignment_wins() -> None:
    recipe = load_recipe("shapes", ["training.seed=1", "training.seed=2"])
    assert recipe.training.seed == 2


def test_the_file_is_not_touched() -> None:
    before = load_recipe("shapes")
    load_recipe("shapes", ["training.seed=1"])
    assert load_recipe("shapes") == before


def test_a_dumped_value_can_be_set_again() -> None:
    recipe = load_recipe("sd15-am")
    tree = tomllib.loads(dump_toml(recipe))
    lines = [
        f"{section}.{key}={json.dumps(value)}"
        for section, table in tree.items()
        if isinstance(table, dict)
        for key, value in table.items()
        if not isinstance(value, dict)
    ]
    assert load_recipe("sd15-am", lines) == recipe
    assert len(lines) > 40


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
_SCALAR = st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | _TEXT
_VALUE = st.recursive(_SCALAR, lambda inner: st.lists(inner, max_size=3), max_leaves=6)


@given(_VALUE)
def test_any_value_written_as_toml_is_read_back(value: object) -> None:
    written = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # of scalars and lists: TOML too
    key, found = parse_assignment(f"a.b={written}")
    tree: dict[str, Any] = {}
    assign(tree, key, found)
    assert tree == {"a": {"b": value}}


@given(
    seed=st.integers(0, 2**31 - 1),
    rate=st.floats(min_value=1e-12, max_value=1e3),
    name=_TEXT,
    tags=st.lists(_TEXT, max_size=3),
    options=st.dictionaries(_TEXT, _SCALAR, max_size=3),
)
def test_any_recipe_survives_the_way_through_toml(
    seed: int, rate: float, name: str, tags: list[str], options: dict[str, object]
) -> None:
    tree = {
        "reward": [{"name": "brightness", "options": options}],
        "training": {"seed": seed},
        "optimizer": {"learning_rate": rate},
        "tracking": {"name": name, "tags": tags},
    }
    recipe = from_dict(copy.deepcopy(tree))
    assert from_dict(tomllib.loads(dump_toml(recipe))) == recipe


@pytest.mark.parametrize("section", [name for name in Recipe.model_fields if name not in ("reward", "code", "origin")])
def test_every_section_can_be_reached(section: str) -> None:
    with pytest.raises(RecipeError, match=rf"{section}\.nonsense: unknown key"):
        load_recipe("shapes", [f"{section}.nonsense=1"])
