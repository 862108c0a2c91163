"""What a user wrote is shown as it stands: names and paths with brackets are no markup."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

import amsd
from amsd.cli import main
from amsd.cli.app import app
from amsd.cli.outputs import as_argument
from amsd.tracking.progress import progress
from tests import pipelines
from tests.cli.commands import RECIPE

ODD = "100% [/] [bold]x[/bold]"


@pytest.mark.parametrize(("path", "typed"), [
    ("runs/x", "runs/x"), ("a b", "'a b'"), ("-x", "./-x"), ("- $x", "'./- $x'"), ("/-x", "/-x"),
])  # fmt: skip
def test_a_path_in_a_command_that_is_shown_can_be_typed(path: str, typed: str) -> None:
    assert as_argument(Path(path)) == typed


def test_no_console_reads_markup() -> None:
    root = Path(amsd.__file__).parent
    found = [
        (file.name, {each.arg: ast.unparse(each.value) for each in node.keywords}.get("markup"))
        for file in root.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Console"
    ]
    assert len(found) >= 5
    assert [each for each in found if each[1] != "False"] == []


def test_what_is_going_on_may_have_any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, where rich turns bars."""
    terminal = Console(force_terminal=True, width=120, markup=False)
    monkeypatch.setattr("amsd.tracking.progress.Console", lambda **_: terminal)
    with terminal.capture() as shown, progress() as report:
        report(ODD, 1, 2)
    assert ODD in shown.get()


def test_folders_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model, a recipe, prompts and outputs below a folder that looks like markup, from its plan to its report."""
    place = tmp_path / ODD
    pipelines.stable_diffusion().save_pretrained(place / "model")
    (place / "eval.txt").write_text("a tree\na dog\n", encoding="utf-8")
    (place / "mine.py").write_text("def red(images, prompts):\n    return images[:, 0].mean((1, 2))\n")
    recipe = RECIPE.format(model=place / "model").replace('name = "brightness"', 'name = "python:mine.py:red"')
    (place / "recipe.toml").write_text(
        recipe.replace('evaluation = ["a blue square", "a tree"]', 'evaluation = "eval.txt"'), encoding="utf-8"
    )
    monkeypatch.chdir(place)
    short = ("--set", "training.steps=1", "--set", "optimizer.prompts_per_step=2")
    for arguments in (
        ("recipe", "check", place / "recipe.toml"),
        ("train", place / "recipe.toml", "--dry-run", "-o", place / "run", *short),
        ("train", place / "recipe.toml", "-o", place / "run", *short),
        ("eval", place / "run"),
        ("eval", place / "model", "--recipe", place / "recipe.toml", "--allow-code", "-o", place / "results"),
        ("sample", place / "run", "-p", ODD, "-o", place / "pictures"),
        ("report", place / "run", "-o", place / "page.html"),
        ("export", place / "run", "-o", place / "export"),
    ):
        outcome = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert outcome.exit_code == 0, (arguments, outcome.output, outcome.exception)
    assert ODD in outcome.output


def test_what_no_path_can_be_called_is_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for arguments, words in (
        (["eval", "x" * 300, "--recipe", "shapes"], "File name too long"),
        (["report", "x" * 300], "File name too long"),
        (["train", "shapes", "--dry-run", "-o", "loop/run"], "a link that leads nowhere"),
        (["sample", "base", "-p", "a", "-o", "loop"], "a link that leads nowhere"),
    ):
        monkeypatch.setattr("sys.argv", ["amsd", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert words in capsys.readouterr().err
