"""What holds of the room's own code: no circle of imports, and one file that reaches behind Optuna's interface."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import amsd.sweep
from amsd.sweep.launchers import LAUNCHERS

ROOM = Path(amsd.sweep.__file__).parent
BEHIND = re.compile(
    r"\b_trial_id\b|\b_study_id\b|\._storage\b|\b_suggest\(|system_attrs|\bset_trial_\w+|\bget_all_trials\b"
)


def imported(file: Path) -> set[str]:
    """Modules of the room that a file imports, also inside functions, but not for types alone."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    found = {node.module or "" for node in froms} | {f"{node.module}.{a.name}" for node in froms for a in node.names}
    return {name for name in found if name.startswith("amsd.sweep.")}


def test_imports_of_the_room_have_no_circle() -> None:
    files = {".".join(f.relative_to(ROOM.parents[1]).with_suffix("").parts): f for f in ROOM.rglob("*.py")}
    files = {name.removesuffix(".__init__"): file for name, file in files.items()}
    graph = {name: imported(file) & files.keys() - {name} for name, file in files.items()}
    assert "amsd.sweep.study" in graph["amsd.sweep.launchers.local"]
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_one_file_reaches_behind_optuna() -> None:
    outside = {file.name for file in ROOM.rglob("*.py") if BEHIND.search(file.read_text(encoding="utf-8"))}
    assert outside == {"optuna_access.py", "storage.py"}  # storage.py wraps a whole storage, method by method


def test_every_launcher_has_its_row() -> None:
    for target in LAUNCHERS.values():
        module, _, kind = target.partition(":")
        assert callable(getattr(import_module(module), kind)().launch)
