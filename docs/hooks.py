"""MkDocs hooks: the page of recipe keys is made from the recipe's JSON schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

PAGE = "recipe-reference.md"
ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "recipes" / "schema.json"
PICTURE = re.compile(r"(?<=\]\()\.\./([^)\s]+\.(?:png|svg))(?=\))")
"""Address of a picture that a page shows and that lies outside `docs/`."""
INTRODUCTION = """# Recipe keys

Every key of a recipe, its type and its default. This page is made from the schema that checks recipes. Editors that
know JSON schemas complete and check a recipe that begins with `#:schema ./schema.json`.

Set a key in the TOML file, or on the command line with `--set section.key=value`. An unknown key is an error that names
the nearest known one.
"""


def on_files(files: Files, config: Any) -> Files:
    """Add the page of recipe keys, and the pictures that lie outside `docs/`."""
    files.append(File.generated(config, PAGE, content=page(json.loads(SCHEMA.read_text(encoding="utf-8")))))
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    for source in sorted(set(PICTURE.findall(pages))):
        files.append(File.generated(config, _place(source), abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links into the repository lead nowhere on the site: pictures are taken along, of the others the text stays."""
    markdown = PICTURE.sub(lambda found: _place(found[1]), markdown)
    return re.sub(r"(?<!!)\[([^\]]+)\]\(\.\./[^)]*\)", r"\1", markdown)


def _place(source: str) -> str:
    """Where the site keeps a picture of the repository."""
    return f"images/{source.replace('/', '-')}"


def page(schema: dict[str, Any]) -> str:
    """The whole page as Markdown."""
    return "\n".join([INTRODUCTION, *_section(schema, schema, ())])


def _section(schema: dict[str, Any], node: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """A table of a section's own keys, then its subsections."""
    inner: list[tuple[str, dict[str, Any]]] = []
    for choice in node.get("oneOf", ()):  # one table for each value of its `name`
        chosen = _resolved(schema, choice)
        yield from _section(schema, {**chosen, "x-choice": chosen["properties"]["name"].get("const", "")}, path)
    if "oneOf" in node:
        return
    rows = []
    for name, entry in node.get("properties", {}).items():
        section = _resolved(schema, entry)
        if section.get("properties") or section.get("oneOf"):
            inner.append((name, section))
        else:
            default = "required" if name in node.get("required", ()) else f"`{json.dumps(entry.get('default'))}`"
            text = " ".join(str(entry.get("description", "")).split()).replace("|", "\\|")
            rows.append(f"| `{name}` | {text} | {_type(schema, entry)} | {default} |")
    if path:
        repeated = "[[{}]]" if _is_list(node) else "[{}]"
        choice = f" with name = {node['x-choice']!r}" if node.get("x-choice") else ""
        yield from ("", f"## {repeated.format('.'.join(path))}{choice}".replace("[", "\\["), "")
        yield str(node.get("description", "")).replace("docs/method.md", "[method](method.md)")
    if rows:
        yield from ("", "| key | meaning | type | default |", "|---|---|---|---|", *rows)
    for name, section in inner:
        yield from _section(schema, section, (*path, name))


def _resolved(schema: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """The section that a key holds (an array of sections gives the section of one entry); else the entry itself."""
    if "$ref" in entry:
        return dict(schema["$defs"][entry["$ref"].rpartition("/")[2]])
    for choice in entry.get("anyOf", ()):
        if "$ref" in choice:
            return _resolved(schema, choice)
    items = entry.get("items", {})
    if "$ref" in items:
        return {**_resolved(schema, items), "x-list": True}
    return entry


def _is_list(node: dict[str, Any]) -> bool:
    return bool(node.get("x-list"))


def _type(schema: dict[str, Any], entry: dict[str, Any]) -> str:
    """The type of a key in words."""
    if "$ref" in entry:
        return _type(schema, _resolved(schema, entry))
    if "anyOf" in entry:
        return " or ".join(_type(schema, choice) for choice in entry["anyOf"] if choice.get("type") != "null")
    if "enum" in entry or "const" in entry:
        return " or ".join(f"`{json.dumps(value)}`" for value in entry.get("enum", [entry.get("const")]))
    if entry.get("type") == "array":
        inner = entry.get("items") or next(iter(entry.get("prefixItems", [])), {})
        return f"list of {_type(schema, inner)}"
    limits = [
        f"{sign} {entry[key]:g}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if isinstance(entry.get(key), int | float)
    ]
    return " ".join([str(entry.get("type", "any")), ", ".join(limits)]).strip()
