"""What must hold of any input: it is used, or refused in words; what is used can be written and read again.

Every property takes one example and a scratch folder. It returns whether the example was accepted; anything but an
`AmsdError` that escapes from amsd is a finding. `PROPERTIES` names them with their strategies; the tests try a few
examples of each, `nox -s faults` thousands.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import tomllib
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from amsd.cli import main
from amsd.errors import AmsdError
from amsd.evaluation.result import EvaluationResult
from amsd.prompts import load_prompts
from amsd.recipe import Recipe, dump_toml, from_dict, identity, load_recipe
from amsd.recipe.comments import with_comments
from amsd.recipe.cost import training_cost
from amsd.recipe.load import read_run
from amsd.recipe.rules import warnings
from amsd.run_directory import RunDirectory, default_output
from amsd.sweep.display import outline
from amsd.sweep.load import load_plan, restore_plan
from amsd.sweep.schema import Sweep, SweepPlan
from tests.fuzz import inputs

RELEASED = Path(__file__).parents[1] / "data" / "run-0.1.0"
Check = Callable[[Any, Path], bool]


@dataclass(frozen=True)
class Property:
    """A check and the examples for it."""

    name: str
    examples: st.SearchStrategy[Any]
    check: Check


def recipe_holds(recipe: Recipe, name: str = "mine") -> None:
    """A recipe that was accepted is written and read back equal, costs something finite, and names a folder."""
    text = dump_toml(recipe)
    for written in (text, with_comments(recipe)):
        again = from_dict(tomllib.loads(written))
        assert again.model_dump() == recipe.model_dump()  # `==` also compares which keys of other methods were left out
        assert identity(again) == identity(recipe)
    assert len(identity(recipe)) == 12
    json.dumps(recipe.model_dump(mode="json"), allow_nan=False).encode()
    [str(problem).encode() for problem in warnings(recipe)]
    training_cost(recipe)
    folder = default_output(recipe, name)
    assert folder.parts[0] == "runs"
    assert len(folder.parts) == 2
    assert len(folder.name.encode()) < 250
    assert folder.name.isprintable()


def accepted(load: Callable[[], Any], holds: Callable[[Any], None]) -> bool:
    """Whether `load` accepts; then `holds` must. A refusal is a text that a terminal can show."""
    refusal = ""
    try:
        found = load()
    except AmsdError as error:
        refusal = str(error)
    if not refusal:
        holds(found)
        return True
    assert refusal.strip()
    assert len(refusal) < 100_000
    assert all(char.isprintable() or char in "\n\t" for char in refusal)
    return False


def assignment(example: list[str], scratch: Path) -> bool:
    """`--set`, once or several times."""
    return accepted(lambda: load_recipe("shapes-buffer", example), recipe_holds)


def recipe_file(example: bytes, scratch: Path) -> bool:
    """A recipe of the user's, and the same as the recipe of a run."""
    file = scratch / "mine.toml"
    file.write_bytes(example)
    found = accepted(lambda: load_recipe(file), recipe_holds)
    accepted(lambda: read_run(file), lambda recipe: None)
    return found


def sweep_holds(plan: SweepPlan, scratch: Path) -> None:
    """A sweep that was accepted survives its storage, stays in its folder, and says how large it is."""
    assert restore_plan(json.loads(json.dumps(plan.dump(), allow_nan=False))) == plan
    runs = scratch / "runs"
    folder = runs / f"sweep-{plan.sweep.name}"
    assert folder.resolve().parent == runs.resolve()
    folder.mkdir(parents=True)
    shutil.rmtree(runs)
    accepted(lambda: list(outline(plan)), lambda lines: [line.encode() for line in lines] and None)


def sweep_file(example: tuple[bytes, list[str]], scratch: Path) -> bool:
    """A sweep file with `--set`."""
    file = scratch / "search.toml"
    file.write_bytes(example[0])
    return accepted(lambda: load_plan(file, example[1]), lambda plan: sweep_holds(plan, scratch))


def sweep_name(example: str, scratch: Path) -> bool:
    """A sweep's name, which is a folder's too."""
    tree = {"name": example, "recipe": "shapes", "search": {"schedule.eta": {"choices": [1.0]}},
            "sampler": {"name": "grid"}, "objective": [{"metric": "shapes:right"}]}  # fmt: skip
    file = scratch / "search.toml"
    file.write_bytes(inputs.toml(tree))
    return accepted(lambda: load_plan(file), lambda plan: sweep_holds(plan, scratch))


def file_of_a_sweep(example: tuple[str, bytes], scratch: Path) -> bool:
    """`plan.json` or `sweep.json` of a sweep's folder, and the plan that a storage holds."""
    from amsd.sweep.load import code_in
    from amsd.sweep.study import _plan_in, _pointed

    name, content = example
    (scratch / name).write_bytes(content)
    accepted(lambda: _pointed(scratch, None), lambda found: None)

    def read() -> SweepPlan | None:
        found = _plan_in(scratch)
        if found is not None:
            code_in(found.dump())
        return found

    return accepted(read, lambda plan: None if plan is None else sweep_holds(plan, scratch))


def command_line(example: tuple[bytes, bool, list[str]], scratch: Path) -> bool:
    """`amsd recipe check` and `amsd sweep run --dry-run`: exit code 0 or 2, words on the terminal, nothing begun."""
    content, is_sweep, options = example
    file = scratch / "mine.toml"
    file.write_bytes(content)
    command = ["sweep", "run", str(file), "--dry-run"] if is_sweep else ["recipe", "check", str(file)]
    arguments = [*command, *(part for option in options for part in ("--set", option))]
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(scratch)
        patch.setattr(sys, "argv", ["amsd", *arguments])
        try:
            main()
            code: object = 0
        except SystemExit as end:
            code = end.code or 0
    assert code in (0, 2), err.getvalue()
    assert bool(err.getvalue().strip()) or code == 0
    assert "traceback" not in err.getvalue().lower()
    assert [path.name for path in scratch.iterdir()] == ["mine.toml"]
    return code == 0


def prompt_file(example: tuple[str, bytes, str | None], scratch: Path) -> bool:
    """A file of prompts in any format."""
    suffix, content, column = example
    file = scratch / f"prompts{suffix}"
    file.write_bytes(content)

    def hold(prompts: Any) -> None:
        assert len(prompts) == len(set(prompts.texts)) > 0
        assert all(text == text.strip() != "" for text in prompts.texts)
        assert len(prompts.identity) == 64
        "".join([*prompts.texts, *prompts.remarks]).encode()

    return accepted(lambda: load_prompts(str(file), column=column), hold)


def prompt_source(example: str, scratch: Path) -> bool:
    """What `prompts.train` names; the hub is not asked."""
    return accepted(lambda: load_prompts(example), lambda prompts: None)


def result_file(example: bytes, scratch: Path) -> bool:
    """The file of an evaluation."""
    file = scratch / "result.json"
    file.write_bytes(example)

    def hold(result: EvaluationResult) -> None:
        assert EvaluationResult.load(result.save(scratch / "again")) == result

    return accepted(lambda: EvaluationResult.load(file), hold)


def run_file(example: tuple[Path, bytes], scratch: Path) -> bool:
    """One file of a run replaced: the readers of the run, and the report, say so or go on without it."""
    from amsd.experiment.start import require_same
    from amsd.report.data import load_run
    from amsd.report.page import write_page
    from amsd.report.story import run_story
    from amsd.tracking.background import Said
    from amsd.tracking.jsonl import trim
    from amsd.tracking.log import LogFollower, stopped
    from amsd.training.checkpoint import CheckpointScores, newest_whole

    name, content = example
    path = scratch / "run"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(RELEASED, path)
    (path / name).write_bytes(content)
    run = RunDirectory(path)
    assert run.used
    assert CheckpointScores(run).read().keys() <= {2, 4} or name.name == "scores.json"
    Said(path / "trackers" / "wandb.json", 4).new(5, "x")
    recipe, prompts = _started()
    accepted(lambda: newest_whole(run), lambda found: None)
    accepted(lambda: require_same(run, recipe, prompts), lambda found: None)
    accepted(lambda: load_run(path), lambda found: None)
    if sum(content) % 4 == 0:  # the slowest reader
        accepted(lambda: write_page(run_story(path), scratch / "page.html"), lambda found: None)
    LogFollower(run.metrics).new()
    stopped(run.metrics)
    trim(run.metrics, 2)
    return True


@cache
def _started() -> tuple[Recipe, Any]:
    return read_run(RELEASED / "recipe.toml"), (load_prompts(["a"]), load_prompts(["b"]))


@cache
def _base(kind: str) -> dict[str, Any]:
    place = {"recipes": "shapes-buffer", "sweeps": "cfg-eta"}[kind]
    return next(tomllib.loads(text.decode()) for text in inputs.shipped(kind) if _is(kind, place, text))


def _is(kind: str, name: str, text: bytes) -> bool:
    return (inputs.folder(kind) / f"{name}.toml").read_bytes() == text  # type: ignore[arg-type]


def _prompt_files() -> st.SearchStrategy[tuple[str, bytes, str | None]]:
    suffixes = st.sampled_from([".txt", ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".TXT", ".yaml", ""])
    rows = st.lists(inputs.texts, max_size=4)
    text = rows.map(lambda lines: inputs.encoded("\n".join(["prompt", *lines])))
    entries = st.lists(inputs.json_values | st.fixed_dictionaries({"prompt": inputs.json_values}), max_size=3)
    as_json = entries.map(lambda each: json.dumps(each).encode())
    lines = entries.map(lambda each: "\n".join(map(json.dumps, each)).encode())
    good = [b"prompt\na cat\n", b'"a cat"\n', b'["a", "b"]', b'{"prompt": "a"}\n', _parquet(["a", "b"])]
    damaged = st.sampled_from(good).flatmap(inputs.damaged) | inputs.damaged_json(["a", {"prompt": "b"}])
    content = text | as_json | lines | rows.map(_parquet) | damaged | st.binary()
    return st.tuples(suffixes, content, st.none() | st.sampled_from(["prompt", "", "\ud800", "x" * 1000]))


def _parquet(rows: list[str]) -> bytes:
    import io

    import pyarrow
    import pyarrow.parquet

    stream = io.BytesIO()
    kept = [row for row in rows if row.encode("utf-8", "replace").decode() == row]
    pyarrow.parquet.write_table(pyarrow.table({"prompt": kept, "number": list(range(len(kept)))}), stream)
    return stream.getvalue()


def _run_files() -> st.SearchStrategy[tuple[Path, bytes]]:
    def spoiled(name: Path) -> st.SearchStrategy[tuple[Path, bytes]]:
        content = (RELEASED / name).read_bytes()
        broken = inputs.damaged(content) | st.binary(max_size=20)
        if name.suffix == ".json":
            broken |= inputs.damaged_json(json.loads(content))
        if name.suffix == ".jsonl":
            broken |= _broken_lines(content)
        return broken.map(lambda changed: (name, changed))

    return st.sampled_from(inputs.run_files(RELEASED)).flatmap(spoiled)


@st.composite
def _broken_lines(draw: st.DrawFn, content: bytes) -> bytes:
    lines = content.splitlines()
    index = draw(st.integers(0, len(lines) - 1))
    lines[index] = draw(inputs.damaged_json(json.loads(lines[index])))
    return b"\n".join(lines) + b"\n"


def properties() -> list[Property]:
    """All of them."""
    recipes, sweeps = _base("recipes"), _base("sweeps")
    whole = next((RELEASED / "evaluation" / "base").glob("*.json")).read_bytes()
    results = inputs.damaged_json(json.loads(whole)) | inputs.damaged(whole)
    sources = inputs.texts.filter(lambda text: not text.startswith("hub:"))
    several = st.lists(inputs.assignments(Recipe, recipes), min_size=1, max_size=3)
    recipe_bytes = inputs.trees(Recipe, recipes).map(inputs.toml) | inputs.files("recipes")
    sweep_bytes = inputs.trees(Sweep, sweeps).map(inputs.toml) | inputs.files("sweeps")
    plan = load_plan("cfg-eta").dump()
    pointer = {"format": 1, "storage": "sqlite:///study.db", "study": "cfg-eta"}
    sweep_files = st.tuples(st.just("plan.json"), inputs.damaged_json(plan)) | st.tuples(
        st.just("sweep.json"), inputs.damaged_json(pointer)
    )
    commands = st.tuples(recipe_bytes, st.just(False), several) | st.tuples(
        sweep_bytes, st.just(True), st.lists(inputs.assignments(Sweep, sweeps), max_size=1)
    )
    sweep_set = st.lists(inputs.assignments(Sweep, sweeps), max_size=2)
    return [
        Property("--set", several, assignment),
        Property("recipe file", recipe_bytes, recipe_file),
        Property("sweep file", st.tuples(sweep_bytes, sweep_set), sweep_file),
        Property("file of a sweep", sweep_files, file_of_a_sweep),
        Property("command line", commands, command_line),
        Property("sweep name", inputs.texts, sweep_name),
        Property("prompt file", _prompt_files(), prompt_file),
        Property("prompt source", sources, prompt_source),
        Property("result file", results, result_file),
        Property("file of a run", _run_files(), run_file),
    ]
