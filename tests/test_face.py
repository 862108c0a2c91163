"""amsd as a library: `import amsd` in a notebook."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import amsd
from amsd.errors import on_command_line, option
from tests.documentation.pages import blocks

ROOT = Path(__file__).parents[1]


def test_every_name_is_there_and_an_unknown_one_is_an_error() -> None:
    assert {"train", "load_recipe", "AMTrainer", "SOCDDIMScheduler", "sample", "export"} <= set(dir(amsd))
    for name in dir(amsd):
        assert getattr(amsd, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = amsd.trian


def test_type_checkers_and_editors_know_every_name() -> None:
    stub = ast.parse((ROOT / "amsd" / "__init__.pyi").read_text(encoding="utf-8"))
    found = {name.asname: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for name in node.names}
    assert found == amsd._FACE
    assert set(amsd.__all__) == {*found, "__version__"}
    assert (ROOT / "amsd" / "py.typed").is_file()


def test_the_page_of_the_library_names_every_name() -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"\w+", page))
    assert set(amsd.__all__) - documented == {"__version__", "SchedulerMixin"}


def test_importing_amsd_imports_nothing_heavy() -> None:
    code = "import sys, amsd; dir(amsd); print([n for n in ('torch', 'diffusers', 'pydantic') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_a_trainer_that_was_built_by_hand_trains_and_writes_its_recipe(tmp_path: Path) -> None:
    from amsd.experiment.setup import build_accelerator, build_problem, load_policy

    recipe = amsd.load_recipe(
        "shapes",
        ["training.steps=1", "optimizer.prompts_per_step=2", "evaluation.every=0"],
    )
    accelerator = build_accelerator(recipe)
    prompts = ["a small red circle", "two blue squares"]
    problem = build_problem(recipe, accelerator, load_policy(recipe, accelerator.device), prompts)
    run = amsd.RunDirectory(tmp_path / "run")
    amsd.AMTrainer(problem, run, prompts, accelerator).fit()
    assert amsd.load_recipe(str(run.recipe)) == amsd.load_recipe(str(run.checkpoint(1) / "recipe.toml"))
    assert amsd.load_recipe(str(run.recipe)).training.steps == 1


def test_a_run_is_used_by_its_folders_name_and_errors_speak_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    few = [
        "training.steps=1",
        "optimizer.prompts_per_step=2",
        "evaluation.prompts=2",
        "evaluation.samples_per_prompt=2",
    ]
    recipe = amsd.load_recipe("shapes", [*few, 'tracking.trackers="none"', "schedule.num_inference_steps=5"])
    finished = amsd.train(recipe, "run")
    (again,) = amsd.evaluate_checkpoint(recipe, "run")
    assert again.metrics["shapes:right"].mean == finished.results[0].metrics["shapes:right"].mean
    (picture,) = amsd.sample(recipe, "run", amsd.SampleRequest(["a red circle"]), "pictures")
    assert picture.is_file()
    assert (amsd.export(recipe, "run", "model") / "model_index.json").is_file()
    assert amsd.write_report("run") == Path("run/report.html")
    assert [
        entry.step for entry in amsd.read_log(amsd.RunDirectory("run").metrics).entries if entry.kind == "step"
    ] == [1]
    assert amsd.load_run("run").finished
    wrong = {
        "already holds a run. Continue it with resume=True, or choose another output": lambda: amsd.train(
            recipe, "run"
        ),
        "no checkpoint there": lambda: amsd.sample(recipe, "nowhere", amsd.SampleRequest(["a"]), "more"),
        "kohya's format writes a LoRA file": lambda: amsd.export(recipe, "run", "other", "kohya"),
        "no such folder": lambda: amsd.write_report("nowhere"),
        "shapes.toml with assignments": lambda: amsd.load_recipe("shapes", ["schedule.etaa=1"]),
        "must have the form key=value": lambda: amsd.load_recipe("shapes", ["schedule.eta"]),
        "no such file, and no shipped recipe": lambda: amsd.load_recipe("shpes"),
    }
    for text, call in wrong.items():
        with pytest.raises(amsd.AmsdError) as error:
            call()
        assert text in str(error.value)
        assert "--" not in str(error.value)


def test_the_command_line_names_options_as_they_are_typed() -> None:
    assert option("resume", "resume=True") == "resume=True"
    with on_command_line():
        assert option("resume", "resume=True") == "--resume"
        with on_command_line():
            pass
        assert option("output") == "--output"
    assert option("output") == "output"


@pytest.mark.slow
def test_the_python_block_of_the_readme_trains_and_prints_the_gain(tmp_path: Path) -> None:
    (block,) = [found.text for found in blocks("python") if found.page == "README.md"]
    assert len(block.splitlines()) <= 25
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", block], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr
    gain, error = map(float, re.search(r"gain ([+-]\S+) ± (\S+),", done.stdout).groups())  # type: ignore[union-attr]
    assert gain > 5 * error
