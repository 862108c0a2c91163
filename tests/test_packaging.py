"""What the package says about itself in pyproject.toml."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
#: Imported, and never without the package in brackets.
BROUGHT_BY = {"markupsafe": "jinja2"}


def _name(requirement: str) -> str:
    return re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def _imported() -> set[str]:
    found: set[str] = set()
    for file in (ROOT / "amsd").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"amsd"}


def test_every_import_is_declared() -> None:
    extras = [entry for entries in PROJECT["optional-dependencies"].values() for entry in entries]
    declared = {_name(requirement) for requirement in PROJECT["dependencies"] + extras}
    packages = packages_distributions()
    undeclared = {
        module
        for module in _imported()
        if not declared & {BROUGHT_BY.get(_name(package), _name(package)) for package in packages.get(module, [module])}
    }
    assert not undeclared


def test_constraints_are_names_and_versions_only() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []
    pinned = {_name(line) for line in lines}
    missing = {_name(requirement) for requirement in PROJECT["dependencies"]} - pinned
    assert not missing


def test_sections_of_the_method_that_the_code_cites_exist() -> None:
    page = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    written = set(re.findall(r"^## (\d+)\. ", page, flags=re.MULTILINE))
    cited = set()
    for file in [*(ROOT / "amsd").rglob("*.py"), ROOT / "recipes" / "schema.json"]:
        text = " ".join(file.read_text(encoding="utf-8").split())
        for numbers in re.findall(r"docs/method\.md,? sections? ((?:\d[ ,to]*)+)", text):
            cited |= set(re.findall(r"\d+", numbers))
    assert cited
    assert cited <= written


def _audit_problem(tmp_path: Path, answer: object, pinned: str = "torch==2.0\nHuggingface_Hub==1.0\n") -> str:
    nox = pytest.importorskip("nox")
    assert nox
    specification = importlib.util.spec_from_file_location("amsd_noxfile", ROOT / "noxfile.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    file, constraints = tmp_path / "audit.json", tmp_path / "constraints.txt"
    if answer is not None:
        file.write_text(json.dumps({"dependencies": answer}), encoding="utf-8")
    constraints.write_text(pinned, encoding="utf-8")
    return str(module.audit_problem(file, constraints))


def test_an_audit_without_an_answer_does_not_pass(tmp_path: Path) -> None:
    skipped = [{"name": "torch", "skip_reason": "not found"}, {"name": "huggingface-hub", "skip_reason": "not found"}]
    assert "NOTHING WAS AUDITED" in _audit_problem(tmp_path, None)
    assert "NOTHING WAS AUDITED" in _audit_problem(tmp_path, skipped)


def test_an_audit_passes_only_if_every_package_was_looked_up_and_none_is_vulnerable(tmp_path: Path) -> None:
    torch = {"name": "torch", "version": "2.0", "vulns": []}
    hub = {"name": "huggingface-hub", "version": "1.0", "vulns": []}
    assert _audit_problem(tmp_path, [torch, hub]) == ""
    partly = _audit_problem(tmp_path, [torch, {"name": "huggingface-hub", "skip_reason": "no"}])
    assert partly == "No answer for 1 of 2 packages: huggingface-hub"
    flaw = {"id": "PYSEC-1", "fix_versions": ["2.1"]}
    assert _audit_problem(tmp_path, [torch | {"vulns": [flaw]}, hub]) == "torch 2.0: PYSEC-1, fixed in 2.1"
