"""Strategies of input that users, broken programs and attackers write: texts, numbers, TOML, JSON, files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import tomli_w
from hypothesis import strategies as st
from pydantic import BaseModel

from amsd.recipe.catalog import folder, names
from amsd.recipe.methods import rows, section_of

TEXTS = (
    "", " ", "\0", "a\0b", "\ud800", "\udfff.txt", "a" * 300, "é" * 200, "../x", "../../etc/passwd", "/etc/passwd",
    "/", ".", "..", "...", ".x", "x.", "x ", "a/b", "a\\b", "C:\\x", "CON", "٣", "²", "½", "e\u0301", "\u202e",
    "\ufeff", "\u2028", "a\nb", "a\rb", "a\tb", "\x1b[31m", "\x7f", "~", "~nobody-here/x", "$HOME", "%s", "{0}",
    "{", "[red]", "[/]", "a=b", "=", "1e400", "nan", "inf", "-0", "1_000", "0x10", "none", "null", "true",
    "python:", "python:x", "python:os:system", "python:../x.py:f", "python:a.py", "hub:", "hub:a:b:c:d",
    "hub:../..", "embedded:", "embedded:nothing", "pyiqa:", "am", "buffer-am", "fine-tuning", "clip", "brightness",
    "shapes:right", "diversity/clip", "train/loss", "👩‍👩‍👧‍👦", "x" * 70_000,
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 7, 8, 100, 1000, 1001, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 2**64, 10**12,
    10**18, 10**30, 10**400, 0.0, -0.0, 0.5, 1.0, 5e-324, 1e-320, 1e-30, 1e30, 1e308, -1e308, float("inf"),
    float("-inf"), float("nan"),
)  # fmt: skip
LITERALS = (
    "1" + "0" * 5000, "-" + "9" * 5000, "[" * 3000, "[" * 400 + "]" * 400, "[" * 60 + "]" * 60,
    "{a=" * 100 + "1" + "}" * 100, "2026-01-01", "07:32:00", "1979-05-27T07:32:00Z",
    "1979-05-27 07:32:00.999999-00:00", "0xDEADBEEF", "0o755", "0b1", "1e400", "1e999999999", "nan", "+inf", "-inf",
    "-nan", '"\\ud800"', '"\\U00110000"', '"\\u0000"', '"\0"', "1\nb=2", "1 # c", "# c", "{}", "[]", "[[]]", "[{}]",
    "{a.b.c = 1}", "{a=1,a=2}", "'''x", '"""\n"""', "1_", "٣", "1.", ".5", "+0", "-0.0", "TRUE", "[1, 'a']", ",",
    "]", "\\",
)  # fmt: skip
texts = (
    st.sampled_from(TEXTS)
    | st.text(max_size=12)
    | st.text(st.characters(categories=["Cs", "Cc", "Nd", "No"]), max_size=4)
)
numbers = st.sampled_from(NUMBERS) | st.integers() | st.floats()
scalars = texts | numbers | st.booleans()


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Lists and tables of leaves."""
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=5
    )


values = nested(scalars)
json_values = nested(scalars | st.none())
deep = st.sampled_from([10, 49, 51, 200, 3000])


@cache
def keys_of(model: type[BaseModel]) -> tuple[str, ...]:
    """Dotted paths of the keys of a recipe or sweep, lists by their first entry."""
    return tuple(_keys(model, ""))


def _keys(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        inner = list(_models(field.annotation))
        if prefix + name == "method":
            inner = [section_of(row) for row in rows()]
        for kind in inner:
            between = "[0]." if "tuple" in str(field.annotation) else "."
            yield from _keys(kind, f"{prefix}{name}{between}")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def keys(model: type[BaseModel]) -> st.SearchStrategy[str]:
    """Mostly keys that exist, also those next to them."""
    known = st.sampled_from(keys_of(model))
    odd = st.sampled_from(
        ["", ".", "..", "a..b", "reward.²", "reward.٣", "reward[0", "reward.0]", "reward.-1", "reward[99999999999]",
         "reward.1", "reward[0].options.x", "reward[0].options", "evaluation.options.clip.x", "method", "format",
         "code.x.path", "origin", "__class__", "reward.__len__", "." * 100, "a." * 60, "x" * 10_000,
         "search.a.choices", "first", "override.a.b"]
    )  # fmt: skip
    return known | known | odd | texts | st.builds(lambda a, b: f"{a}.{b}", known, texts)


def literals() -> st.SearchStrategy[str]:
    """TOML values, and what looks like them."""
    lists = st.lists(scalars, max_size=3).map(_dumped)
    return st.sampled_from(LITERALS) | numbers.map(_number) | texts | texts.map(json.dumps) | lists


def _number(value: float) -> str:
    return repr(value) if isinstance(value, float) else str(value) if abs(value) < 10**4000 else "9"


def _dumped(value: Any) -> str:
    try:
        return json.dumps(value)
    except ValueError:
        return str(value)[:100]


def assignments(model: type[BaseModel], base: dict[str, Any]) -> st.SearchStrategy[str]:
    """What follows `--set`: known keys at their own values, or at any other."""
    good = st.sampled_from([f"{key}={_dumped(value)}" for key, value in _leaves(base, "")])
    any_key = st.builds(lambda key, value: f"{key}={value}", keys(model), literals())
    any_number = st.builds(lambda key, value: f"{key}={_number(value)}", st.sampled_from(keys_of(model)), numbers)
    return good | any_number | any_key | texts


def _leaves(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@st.composite
def trees(draw: st.DrawFn, model: type[BaseModel], base: dict[str, Any]) -> dict[str, Any]:
    """A tree of plain data: a good one with some keys replaced, added or taken away."""
    tree: dict[str, Any] = json.loads(json.dumps(base))
    for _ in range(draw(st.integers(1, 3))):
        parts: list[str] = draw(keys(model)).replace("[0]", ".0").split(".")[:6]
        node: Any = tree
        for part in parts[:-1]:
            if isinstance(node, list):
                node = node[0] if node else {}
            else:
                node = node.setdefault(part, {}) if isinstance(node, dict) else {}
        if isinstance(node, dict):
            if draw(st.integers(0, 5)) == 0:
                node.pop(parts[-1], None)
            else:
                node[parts[-1]] = draw(values)
    return tree


def toml(tree: dict[str, Any]) -> bytes:
    """The tree as TOML, or as JSON where TOML cannot hold it."""
    try:
        return encoded(tomli_w.dumps(tree))
    except (ValueError, TypeError, RecursionError, AttributeError):
        return encoded(repr(tree))


def encoded(text: str) -> bytes:
    """The bytes of a text, also where it is no Unicode."""
    return text.encode("utf-8", "surrogatepass")


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes of a good file, cut, spliced or overwritten."""
    junk = draw(st.binary(max_size=8) | (texts | literals()).map(encoded))
    start = draw(st.integers(0, len(content)))
    end = draw(st.integers(start, min(len(content), start + draw(st.sampled_from([0, 1, 4, 40, 10_000])))))
    return content[:start] + junk + content[end:]


@st.composite
def damaged_json(draw: st.DrawFn, data: Any) -> bytes:
    """JSON with one node of another type: a list where a table should be, a text for a number, endless nesting."""
    tree = json.loads(json.dumps(data))
    place: Any = None
    node, key = tree, None
    while isinstance(node, dict | list) and node and draw(st.integers(0, 3)):
        place = node
        key = draw(st.sampled_from(sorted(node))) if isinstance(node, dict) else draw(st.integers(0, len(node) - 1))
        node = node[key]
    if draw(st.integers(0, 9)) == 0:
        depth = draw(deep)
        inner = "[" * depth + "]" * depth
    else:
        inner = json.dumps(draw(json_values))
    if place is None:
        return inner.encode()
    place[key] = "@here@"
    return json.dumps(tree).replace('"@here@"', inner).encode()


@cache
def shipped(kind: str) -> tuple[bytes, ...]:
    """Content of the recipes or sweeps that ship with amsd."""
    return tuple((folder(kind) / f"{name}.toml").read_bytes() for name in names(kind))  # type: ignore[arg-type]


def files(kind: str) -> st.SearchStrategy[bytes]:
    """Damaged files of recipes or sweeps."""
    return st.sampled_from(shipped(kind)).flatmap(damaged)


def run_files(run: Path) -> list[Path]:
    """Files of a run that hold text."""
    chosen = [file for file in run.rglob("*") if file.suffix in (".json", ".jsonl", ".toml", "") and file.is_file()]
    return sorted(file.relative_to(run) for file in chosen)
