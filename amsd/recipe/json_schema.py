"""The recipe's JSON schema: editors complete and check recipe files with it (`#:schema ./schema.json`)."""

from __future__ import annotations

import json
from functools import reduce
from operator import or_
from typing import Annotated, Any

from pydantic import Field, create_model

from amsd.recipe.methods import METHODS, section_of
from amsd.recipe.tree import Recipe


def schema_text() -> str:
    """The content of `recipes/schema.json`; its `[method]` is one of the methods that ship with amsd."""
    sections: Any = reduce(or_, (section_of(name) for name in METHODS))
    default = Recipe.model_fields["method"].default
    method: Any = (Annotated[sections, Field(discriminator="name")], default)
    whole = create_model("Recipe", __base__=Recipe, __doc__=Recipe.__doc__, method=method)
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole.model_json_schema()}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
