"""Whoever copies a command or a recipe from README or docs gets what the page says."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from accelerate.state import AcceleratorState
from typer.testing import CliRunner

from amsd.cli.app import app
from amsd.recipe import BufferedSection, from_dict, load_recipe
from amsd.recipe.catalog import names
from amsd.recipe.load import read_toml
from amsd.recipe.methods import METHODS
from amsd.sweep.load import plan_from
from amsd.sweep.schema import Slurm
from tests.cli import commands as tiny
from tests.documentation.pages import PAGES, ROOT, Quoted, blocks, commands, inline, toml_blocks, words

#: Commands that need what no test has; that they parse is all that is checked of them.
ONLY_PARSED = (
    ("sweep", "worker"),  # joins a server's study
    ("demo",),  # serves until it is interrupted: tests/cli/test_demo.py
    ("--format", "kohya"),  # needs a run that trained a LoRA: tests/experiment/test_train.py
    ('tracking.trackers=["my-csv"]',),  # needs the package of its page: tests/training/test_extending.py
    ("--wandb",), ("--backend", "wandb"), ("--push",), ("--launcher", "slurm"),
)  # fmt: skip
#: What a command names and no test has -> how the command's message calls it.
NOT_HERE = {
    "sd15-am": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "results/tuned": "imagereward",
    "runs/sweep-shapes-smoke": "runs/sweep-shapes-smoke",
    "SWEEP": "SWEEP",
    "runs/a": "runs/a",
    "runs/lora": "runs/lora",
    "./my-model": "./my-model",
    "./my-sd15": "./my-sd15",
    "style.safetensors": "style.safetensors",
    "OWNER/NAME": "OWNER/NAME",
}
_ROOT = typer.main.get_command(app)


def synopses() -> list[Quoted]:
    """Lines such as `amsd train RECIPE [--set key=value]...`, which describe commands instead of being some."""
    return [found for found in commands() + inline() if re.search(r"\[--|\|[a-z]", found.text)]


def calls() -> list[Quoted]:
    described = synopses()
    return [found for found in commands() if found not in described]


def in_sentences() -> list[Quoted]:
    """Of the commands in sentences those with an argument: others are names."""
    described = synopses()
    return [found for found in inline() if found not in described and "..." not in found.text]


def resolve(arguments: list[str]) -> tuple[Any, list[str]]:
    """The command that these arguments call, and what is left for it."""
    command: Any = _ROOT
    rest = list(arguments)
    while hasattr(command, "commands") and rest:
        if rest[0].startswith("-"):
            rest.pop(0)
            continue
        assert rest[0] in command.commands, f"no command {rest[0]!r} in {' '.join(arguments)}"
        command = command.commands[rest.pop(0)]
    return command, rest


def test_there_is_something_to_check() -> None:
    assert len(calls()) >= 55
    assert len(list(runnable())) >= 45
    assert len(in_sentences()) >= 40
    assert len(synopses()) >= 8
    assert len(toml_blocks()) >= 9
    line = re.compile(
        r"^(?:\.venv/bin/|    )?amsd (?:train|eval|sample|export|report|recipe|sweep|diagnose) ", re.MULTILINE
    )
    written = {page.name for page in PAGES if line.search(page.read_text("utf-8"))}
    assert {found.page for found in calls()} >= written  # no page with commands is left out


@pytest.mark.parametrize(
    "wrong", ["amsd trian shapes", "amsd train shapes --stpes 3", "amsd eval", "amsd sweep shwo DIR"]
)
def test_a_wrong_command_would_be_found(wrong: str) -> None:
    with pytest.raises(Exception, match=r"no command|No such option|Missing parameter"):
        test_every_command_parses(Quoted("page.md", wrong), pytest.MonkeyPatch())


def test_wrong_toml_would_be_found() -> None:
    with pytest.raises(Exception, match=r"optimizer\.learning_rat"):
        test_every_toml_loads(Quoted("page.md", "[optimizer]\nlearning_rat = 1.0\n"))


@pytest.mark.parametrize("found", calls(), ids=str)
def test_every_command_parses(found: Quoted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMSD_SWEEP_STORAGE", "postgresql://amsd@HOST/amsd")  # exported in the line before
    command, rest = resolve(words(found.text))
    command.make_context("amsd", rest).close()


@pytest.mark.parametrize("found", in_sentences() + synopses(), ids=str)
def test_every_command_in_a_sentence_exists_with_its_options(found: Quoted) -> None:
    text = re.sub(r"[\[\]|]", " ", found.text)
    command, _ = resolve([word for word in text.split()[1:] if not word.isupper()][:1])
    if hasattr(command, "commands"):
        command, _ = resolve(text.split()[1:3])
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert set(re.findall(r"--[a-z-]+", text)) <= known | {"--debug"}


@pytest.mark.parametrize("found", toml_blocks(), ids=lambda found: f"{found.page}: {found.text[:40]!r}")
def test_every_toml_loads(found: Quoted) -> None:
    tree = tomllib.loads(found.text)
    if "search" in tree or "objective" in tree:
        name = tree.get("recipe", "shapes")
        assert plan_from({"name": "documented", **tree}, read_toml(Path("recipes") / f"{name}.toml"))
    elif "slurm" in tree:
        assert Slurm.model_validate_json(json.dumps(tree["slurm"])).nodes == 1
    else:
        from_dict({"reward": [{"name": "brightness"}], **tree}, source=found.page)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages call RUN and RUN/recipe.toml, beside nothing else."""
    folder = tmp_path_factory.mktemp("reader")
    recipe = tiny.write_recipe(folder)
    changes = ("training.steps=2", "evaluation.samples_per_prompt=2")
    arguments = ["train", str(recipe), "--output", str(folder / "RUN")]
    outcome = CliRunner().invoke(app, [*arguments, *(word for change in changes for word in ("--set", change))])
    assert outcome.exit_code == 0, outcome.output
    (folder / "runs").mkdir()
    (folder / "runs" / "RUN").symlink_to(folder / "RUN")
    for block in blocks("python"):  # files that a page tells its reader to write
        name = re.match(r"# (\w+\.py)\n", block.text)
        if name:
            (folder / name[1]).write_text(block.text, encoding="utf-8")
    (folder / "examples").symlink_to(Path("examples").absolute())
    (folder / "best.toml").write_text((folder / "RUN" / "recipe.toml").read_text(encoding="utf-8"), encoding="utf-8")
    return folder


def runnable() -> Iterator[Any]:
    for found in calls():
        arguments = words(found.text)
        if not any(all(word in arguments for word in needed) for needed in ONLY_PARSED):
            yield pytest.param(arguments, id=str(found))


@pytest.mark.slow
@pytest.mark.parametrize("arguments", list(runnable()))
def test_every_command_starts(arguments: list[str], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(
        "amsd.experiment.rehearsal.can_try", lambda recipe, processes: False
    )  # seconds for each command
    AcceleratorState._reset_state(True)  # the pages' recipes differ in precision, and commands here share a process
    if arguments[0] == "train" or arguments[:2] == ["sweep", "run"]:
        arguments = [*arguments, *(["--dry-run"] if "--dry-run" not in arguments else [])]
    arguments = [word.replace("RECIPE", "shapes") for word in arguments]
    outcome = CliRunner().invoke(app, arguments)
    absent = NOT_HERE.get(next((word for word in arguments if word in NOT_HERE and not Path(word).exists()), ""))
    if absent is not None and "--dry-run" not in arguments:
        assert getattr(outcome.exception, "exit_code", None) == 2, f"{outcome.output}{outcome.exception}"
        assert absent in str(outcome.exception)
    else:
        assert outcome.exit_code == 0, f"{outcome.output}{outcome.exception}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: str(page.name))
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    named = re.findall(
        r"\b((?:amsd|tests|benchmarks|recipes|sweeps|embedded|examples|docs)/[\w./-]+[\w/])", page.read_text("utf-8")
    )
    assert [
        name for name in dict.fromkeys(named) if not (ROOT / name).exists() and not list(ROOT.glob(name + "*"))
    ] == []


SD15 = [name for name in names("recipes") if name.startswith("sd15")]


@pytest.mark.parametrize("name", SD15)
def test_without_weights_a_plan_says_what_is_downloaded_and_a_run_names_the_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = load_recipe(name).model.pretrained
    plan = CliRunner().invoke(app, ["train", name, "--dry-run"])
    assert plan.exit_code == 0, plan.exception
    said = " ".join(plan.stdout.split())
    assert f"from the hub: {model}" in said
    assert "imagereward (1.8 GB" in said
    AcceleratorState._reset_state(True)
    run = CliRunner().invoke(app, ["train", name])
    assert getattr(run.exception, "exit_code", None) == 2
    assert f"model.pretrained = '{model}'" in str(run.exception)


def test_messages_of_the_troubleshooting_page_are_those_of_amsd() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]*`[^|]*) \|[^|]*\|[^|]*\|$", page, flags=re.MULTILINE)
    parts = [part.strip() for row in rows for quoted in re.findall(r"`([^`]+)`", row) for part in quoted.split("...")]
    assert len(parts) > 12
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "amsd").rglob("*.py"))
    sources = re.sub(r'"\n\s*f?"', "", sources)  # sentences that go over several lines
    others = {"operator torchvision::nms does not exist", "No such option: --config"}  # of torchvision and of typer
    assert [part for part in parts if part not in others and part not in sources] == []


@pytest.mark.parametrize("name", names("recipes"))
def test_changing_only_the_method_of_a_shipped_recipe_starts(name: str) -> None:
    for method in METHODS:
        recipe = load_recipe(name, [f"method.name={method}"])
        assert recipe.method.name == method
        if isinstance(recipe.method, BufferedSection):
            assert (recipe.method.buffer.size or 0) % recipe.optimizer.prompts_per_step == 0
