"""The house as design says it: rooms without circles, one name for one thing, architectures in their own folder."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import diffusers

import amsd

ROOT = Path(amsd.__file__).parent
TREES = {file.relative_to(ROOT).as_posix(): ast.parse(file.read_text(encoding="utf-8")) for file in ROOT.rglob("*.py")}


def module_of(file: str) -> str:
    return ".".join(("amsd", *Path(file).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module_of(file) for file in TREES}


def imported(tree: ast.AST) -> Iterator[str]:
    """Modules of amsd that a tree imports, anywhere in it: those for types and inside functions count too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{name.name}" for name in node.names} & MODULES
            yield from inner
            if node.module in MODULES and len(inner) < len(node.names):
                yield node.module


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one module (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {module_of(file): set(imported(tree)) - {module_of(file)} for file, tree in TREES.items()}
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles(graph) == []


def test_class_names_are_unique() -> None:
    """In the library, the benchmarks and what tests share, so that a name that is searched for is found once."""
    top = ROOT.parent
    others = [*(top / "benchmarks").rglob("*.py"), *(top / "tests").rglob("*.py")]
    helpers = [file for file in others if not file.name.startswith("test_")]
    assert len(helpers) > 50
    trees = TREES | {file.relative_to(top).as_posix(): ast.parse(file.read_text(encoding="utf-8")) for file in helpers}
    places = defaultdict(list)
    for file, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(file)
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def said(tree: ast.AST) -> Iterator[str]:
    """Names and texts of a source, without docstrings and comments."""
    docs = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.alias(name=name):
                yield name
            case ast.keyword(arg=str(name)):
                yield name
            case ast.Constant(value=str(text)) if id(node) not in docs:
                yield from text.replace(".", " ").replace("/", " ").replace('"', " ").split()


SCHEDULERS = {name for name in dir(diffusers) if name.endswith("Scheduler")}


def test_no_other_room_knows_a_denoiser_or_a_scheduler_by_name() -> None:
    assert len(SCHEDULERS) > 30
    denoisers = {"unet", "transformer", "UNet2DConditionModel", "SD3Transformer2DModel", "FluxTransformer2DModel"}
    others = {file: tree for file, tree in TREES.items() if not file.startswith("diffusion/families/")}
    found = {file: set(said(tree)) & (denoisers | SCHEDULERS) for file, tree in others.items()}
    assert {file: names for file, names in found.items() if names} == {}
    assert "unet" in set(said(TREES["diffusion/families/unet.py"]))  # it would be seen


def test_every_room_is_a_package() -> None:
    """Without `__init__.py` a folder is found by luck: not by the makers of the API pages, nor by every packager."""
    rooms = {file.parent for file in ROOT.rglob("*.py")}
    assert [room for room in rooms if not (room / "__init__.py").is_file()] == []


def test_files_are_short_enough_to_be_read() -> None:
    """At most 300 lines; a file that grows beyond asks to be divided."""
    lengths = {file: len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in TREES}
    assert {file: length for file, length in lengths.items() if length > 300} == {}
