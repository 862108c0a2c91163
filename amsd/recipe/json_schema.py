"""The recipe's JSON schema: editors complete and check recipe files with it (`#:schema ./schema.json`)."""

from __future__ import annotations

import json

from amsd.recipe.schema import Recipe


def schema_text() -> str:
    """The content of `recipes/schema.json`."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
