"""What is wrong with a recipe, all of it at once, each problem with key, value and the way out."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from amsd.errors import UsageError, nearest


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the full key path, the value found, and what would be right."""

    key: str
    message: str
    value: object = None
    suggestion: str | None = None

    def __str__(self) -> str:
        shown = "" if self.value is None else f" (got {_short(self.value)})"
        hint = f" {self.suggestion}" if self.suggestion else ""
        key = self.key if len(self.key) <= 200 else f"{self.key[:197]}..."
        return f"{key}: {self.message}{shown}.{hint}"


M = TypeVar("M", bound=BaseModel)
Location = tuple[str | int, ...]


class RecipeError(UsageError):
    """A recipe, sweep or assignment that cannot be used; carries every problem found."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{source}: {count}", *(f"  {problem}" for problem in problems)]))


def validated(model: type[M], tree: Mapping[str, Any], prefix: Location = ()) -> tuple[M | None, list[Problem]]:
    """Plain data (as TOML gives it) as a section, or what is wrong with it; `prefix` is where the table stands."""
    try:
        # JSON mode: strict about types, yet TOML's arrays may become tuples.
        return model.model_validate_json(json.dumps(tree, default=str)), []
    except ValidationError as error:
        return None, problems_from(error, model, prefix)


def problems_from(error: ValidationError, root: type[BaseModel], prefix: Location = ()) -> list[Problem]:
    """Translate pydantic's errors into problems with key paths, allowed values and nearest names."""
    details: list[dict[str, Any]] = [dict(detail) for detail in error.errors(include_url=False)]
    wrong_inside = {detail["loc"][:depth] for detail in details for depth in range(1, len(detail["loc"]))}
    # A list whose entries are wrong is also "too short" to pydantic: say only what is wrong inside.
    spurious = [d for d in details if d["type"] == "too_short" and d["loc"] in wrong_inside]
    return [_problem(detail, root, prefix) for detail in details if detail not in spurious]


def _problem(detail: Mapping[str, Any], root: type[BaseModel], prefix: Location) -> Problem:
    location = tuple(part for part in detail["loc"] if part != "[key]")  # pydantic's mark of a name in a table
    key = dotted((*prefix, *location))
    value = detail.get("input")
    match detail["type"]:
        case "extra_forbidden":
            names = known_keys(root, location[:-1])
            return Problem(key, "unknown key", suggestion=nearest(str(location[-1]), names))
        case "literal_error":
            expected = detail["ctx"]["expected"]
            hint = nearest(value, _quoted(expected)) if isinstance(value, str) else None
            return Problem(key, f"must be one of {expected}", value, hint)
        case "missing":
            return Problem(key, "is required but absent")
        case "tuple_type" | "list_type":
            return Problem(key, "must be a list", value, _as_list(key, value))
        case _:
            return Problem(key, _sentence(str(detail["msg"])), value)


def dotted(location: Sequence[str | int]) -> str:
    """`("reward", 0, "name")` as `reward[0].name`."""
    text = ""
    for part in location:
        name = str(part) if str(part).strip() else f'"{part}"'
        text += f"[{part}]" if isinstance(part, int) else f".{name}" if text else name
    return text or "(recipe)"


def known_keys(root: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Names that are valid in the table at `location`."""
    model: type[BaseModel] | None = root
    for part in location:
        if isinstance(part, int) or model is None:
            continue
        field = model.model_fields.get(str(part))
        model = _section_in(field.annotation) if field else None
    return list(model.model_fields) if model else []


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (tuple, list, typing.Union, types.UnionType, typing.Annotated):
        return next((found for arg in get_args(annotation) if (found := _section_in(arg))), None)
    return None


def _quoted(expected: str) -> list[str]:
    return [part.strip().strip("'") for part in expected.replace(" or ", ", ").split(",")]


def _sentence(message: str) -> str:
    return message.removeprefix("Value error, ").rstrip(".").replace("Input should", "should")


def _as_list(key: str, value: object) -> str | None:
    """How the value is written as a list of one."""
    if isinstance(value, Mapping):
        return f"Write [[{key}]] with two brackets, or {key} = [{{...}}]."
    return f"Write [{json.dumps(value)}]." if isinstance(value, str | int | float) else None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
