"""Every broken recipe ends in one message with the key and the way out, through the loader and the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from amsd.cli import main
from amsd.errors import UsageError
from amsd.recipe import RecipeError, load_recipe
from tests.recipe.broken import BROKEN, NOT_TOML, Broken

COMMANDS = (("recipe", "check"), ("train",))


@pytest.fixture(params=BROKEN, ids=lambda broken: broken.name)
def broken(request: pytest.FixtureRequest) -> Broken:
    return request.param


@pytest.fixture
def file(broken: Broken, tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(broken.text, encoding="utf-8")
    return path


def failure(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What the command says on stderr when it ends with exit code 2 and nothing on stdout."""
    monkeypatch.setattr(sys, "argv", ["amsd", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    return said.err


def test_the_table_is_large_enough_and_says_nothing_twice() -> None:
    assert len(BROKEN) + len(NOT_TOML) >= 30
    assert len({broken.name for broken in BROKEN}) == len(BROKEN)


def test_loader(broken: Broken, file: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    assert caught.value.exit_code == 2
    problem = next(problem for problem in caught.value.problems if problem.key == broken.key)
    assert broken.reason in str(problem)
    assert str(caught.value).startswith("mine.toml: ")


def test_one_mistake_is_one_problem(broken: Broken, file: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    assert [problem.key for problem in caught.value.problems] == [broken.key]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_command_line(
    command: tuple[str, ...],
    broken: Broken,
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    said = failure([*command, str(file)], capsys, monkeypatch)
    assert broken.key in said
    assert broken.reason in said
    assert list(tmp_path.iterdir()) == [file]  # nothing was begun


@pytest.mark.parametrize("command", [None, *COMMANDS], ids=str)
@pytest.mark.parametrize("case", NOT_TOML)
def test_no_toml(
    case: str,
    command: tuple[str, ...] | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content, reason = NOT_TOML[case]
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    if command:
        said = failure([*command, str(path)], capsys, monkeypatch)
    else:
        with pytest.raises(UsageError) as caught:
            load_recipe(path)
        assert caught.value.exit_code == 2
        said = str(caught.value)
    assert str(path) in said
    assert reason in said


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("shape", "Did you mean 'shapes'?"),
        ("missing/shapes.toml", "Did you mean 'shapes'?"),
        ("nothing-like-it.toml", "Shipped recipes: "),
        (".", "is a folder; name a file"),
        ("tests/data/run-0.1.0", "is a folder; its recipe is tests/data/run-0.1.0/recipe.toml"),
    ],
)
def test_no_file(
    source: str,
    reason: str,
    command: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(source)
    said = failure([*command, source], capsys, monkeypatch)
    assert str(caught.value) in said
    assert reason in said
    assert source in said


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_an_empty_name_is_no_recipe(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load_recipe("")
    assert "'' names nothing. Is a shell variable unset?" in failure([*command, ""], capsys, monkeypatch)


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[schedule]\netaa = 1.0\n[training]\nsteps = "7"\nseed = -1\n', encoding="utf-8")
    with pytest.raises(RecipeError, match="4 problems") as caught:
        load_recipe(path)
    assert {problem.key for problem in caught.value.problems} == {
        "schedule.etaa", "training.steps", "training.seed", "reward",
    }  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_wrong_assignment(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = failure([*command, "shapes", "--set", "schedule.etaa=1"], capsys, monkeypatch)
    assert "--set" in said
    assert "schedule.etaa: unknown key. Did you mean 'eta'?" in said


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_in_a_process_of_its_own(command: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[[reward]]\nname = "brightness"\n[schedule]\neta = 0.0\n', encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "-m", "amsd", *command, str(path)],
        cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "schedule.eta: must be above 0 for training" in ended.stderr
    assert "Traceback" not in ended.stderr
