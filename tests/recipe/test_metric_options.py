"""`[evaluation.options."NAME"]`: options of held-out metrics and embedders."""

from __future__ import annotations

import tomllib

import pytest

from amsd.recipe import dump_toml, from_dict, identity
from amsd.recipe.errors import RecipeError

TEXT = """
[[reward]]
name = "brightness"

[evaluation]
metrics = ["clip-score", "pyiqa:musiq", "hps-v2.1"]
diversity = ["clip"]

[evaluation.options.clip-score]
model = "weights/clip"

[evaluation.options."pyiqa:musiq"]
trust_pickle = true
"a b" = { deep = { "c.d" = 1 } }

[evaluation.options."hps-v2.1"]

[evaluation.options.clip]
model = "weights/clip"
"""


def test_names_with_dots_and_colons_survive_the_way_through_toml() -> None:
    recipe = from_dict(tomllib.loads(TEXT))
    assert recipe.evaluation.options["pyiqa:musiq"] == {"trust_pickle": True, "a b": {"deep": {"c.d": 1}}}
    assert recipe.evaluation.options["hps-v2.1"] == {}
    assert from_dict(tomllib.loads(dump_toml(recipe))) == recipe


def test_they_do_not_change_what_is_trained() -> None:
    tree = tomllib.loads(TEXT)
    with_options = identity(from_dict(tree))
    del tree["evaluation"]["options"]
    assert identity(from_dict(tree)) == with_options


@pytest.mark.parametrize(
    ("name", "reason"),
    [("brightness", "under [[reward]]"), ("pickscore", "named are clip, clip-score, hps-v2.1, pyiqa:musiq")],
)
def test_options_of_what_is_not_held_out_are_refused(name: str, reason: str) -> None:
    tree = tomllib.loads(TEXT)
    tree["evaluation"]["options"][name] = {"model": "x"}
    with pytest.raises(RecipeError) as caught:
        from_dict(tree)
    assert f"evaluation.options.{name}" in str(caught.value)
    assert reason in str(caught.value)
