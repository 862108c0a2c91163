"""The command line as such: what it loads, how it fails, what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from amsd.cli.app import app
from tests.cli.commands import AMSD

HEAVY = (
    "torch", "torchvision", "diffusers", "transformers", "accelerate", "peft", "wandb", "optuna", "numpy",
    "sqlalchemy", "PIL", "rich.markdown", "pygments",
)  # fmt: skip


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*AMSD, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["sweep", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    # Typer itself asks pydantic to read the options of a command.
    heavy = (*HEAVY, "pydantic") if arguments == ["--help"] else HEAVY
    program = (
        f"import sys; sys.argv = ['amsd', *{arguments!r}]\n"
        "from amsd.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "[]"


def test_every_command_is_on_the_help_page_in_one_whole_line() -> None:
    page = CliRunner().invoke(app, ["--help"], terminal_width=80).output
    for name in ("train", "eval", "sample", "export", "diagnose", "report", "recipe", "sweep"):
        [line] = [line for line in page.splitlines() if line.startswith(f"  {name} ")]
        assert line.endswith(".")
        assert not line.endswith("...")


def test_the_list_of_recipes_fits_80_columns_uncut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = CliRunner().invoke(app, ["recipe", "list"]).output
    assert "…" not in text
    assert len(text.splitlines()) == 1 + len(list((Path(__file__).parents[2] / "recipes").glob("*.toml")))
    assert "stable-diffusion-v1-5" in text


def test_a_recipe_is_sound_where_its_prompt_files_are_absent() -> None:
    outcome = CliRunner().invoke(app, ["recipe", "check", "sd15-am", "--set", "prompts.train=ImageReward/data.json"])
    assert outcome.exit_code == 0, outcome.output
    assert "ImageReward/data.json: no such prompt file" in outcome.stderr
    assert "sd15-am: ok" in outcome.stdout


def test_a_malformed_prompt_file_is_an_error_of_the_check(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.json"
    prompts.write_text("{", encoding="utf-8")
    ended = command("recipe", "check", "shapes", "--set", f"prompts.train={prompts}")
    assert ended.returncode == 2
    assert str(prompts) in ended.stderr


def test_the_check_notes_what_this_machine_lacks(tmp_path: Path) -> None:
    missing = tmp_path / "model.safetensors"
    changes = [f"model.pretrained={missing}", "evaluation.prompts=10000"]
    arguments = [word for change in changes for word in ("--set", change)]
    outcome = CliRunner().invoke(app, ["recipe", "check", "shapes", *arguments])
    assert outcome.exit_code == 0, outcome.output
    assert f"nothing at {missing} on this machine" in outcome.stderr
    assert "evaluation.prompts = 10000, but there are 16 evaluation prompts" in outcome.stderr


USED = {
    "train": ["train", "shapes", "--output", "{used}"],
    "export": ["export", "{used}", "--to", "{used}"],
}


@pytest.mark.parametrize("command", USED)
def test_a_used_folder_is_refused_before_anything_heavy_is_loaded(command: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").touch()
    arguments = [argument.replace("{used}", str(tmp_path)) for argument in USED[command]]
    program = (
        f"import sys; sys.argv = ['amsd', *{arguments!r}]\n"
        "from amsd.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 2\n"
        "print([name for name in ('torch', 'diffusers') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert str(tmp_path) in ended.stderr
    assert ended.stdout.splitlines() == ["[]"]


WRONG = {
    "an unknown command": (["fly"], "fly"),
    "an unknown option": (["train", "shapes", "--fast"], "--fast"),
    "an unknown recipe": (["train", "shaped"], "shapes"),
    "a misspelt key": (["train", "shapes", "--set", "training.step=3"], "training.step"),
    "an unknown reward": (["recipe", "check", "shapes", "--set", 'reward=[{name = "shapes:left"}]'], "shapes:left"),
    "no checkpoint": (["eval", "nowhere"], "nowhere"),
    "export of the base": (["export", "base", "--to", "there"], "base model"),
    "a file as the run": (["train", "shapes", "--output", "{file}"], "--output"),
    "a run under a file": (["train", "shapes", "--output", "{file}/run"], "is a file"),
    "a file for pictures": (["sample", "base", "-p", "a cat", "--out", "{file}"], "--out"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_usage_error_is_one_message_on_stderr_with_code_2(case: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    arguments, named = WRONG[case]
    ended = command(*[argument.replace("{file}", str(file)) for argument in arguments])
    assert ended.returncode == 2, ended.stderr
    assert named in ended.stderr
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr


def test_debug_shows_the_traceback() -> None:
    ended = command("--debug", "eval", "nowhere")
    assert ended.returncode != 0
    assert "Traceback" in ended.stderr
    assert "UsageError" in ended.stderr
