"""Several processes give the results of one, however they are launched; one that fails ends the command."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from amsd.cli.app import app
from amsd.recipe.methods import METHODS
from tests.cli import every_method
from tests.cli.commands import LAUNCHERS, amsd, finish, lines, start

pytestmark = pytest.mark.slow

#: Five prompts per step: two processes hold three and two.
UNEVEN = ("--set", "optimizer.prompts_per_step=5", "--set", "training.steps=4")
BUFFER = (
    "--set", "method.name=buffer-am", "--set", "method.timesteps_per_trajectory=1",
    "--set", "method.buffer={size = 10, passes = 2}",
)  # fmt: skip
#: Three groups of two: each lies on both processes.
GROUPS = (
    "--set", "method.name=ram", "--set", "method.group_size=2", "--set", "optimizer.prompts_per_step=6",
    "--set", 'reward=[{name = "python:tests.cli.rewards:ranks", options = { groupwise = true }}]',
    "--set", "training.steps=2", "--set", "evaluation.batch_size=3", "--set", "training.validate_every=1",
)  # fmt: skip


def in_one(recipe: Path, run: Path, *settings: str) -> None:
    outcome = CliRunner().invoke(app, ["train", str(recipe), "--output", str(run), *settings])
    assert outcome.exit_code == 0, outcome.output


def in_two(recipe: Path, run: Path, *settings: str, launcher: str = "amsd") -> None:
    prefix = LAUNCHERS[launcher]
    arguments = ("train", recipe, "--output", run, *settings)
    if prefix:
        ended = finish(start(*arguments, launcher=prefix, ACCELERATE_USE_CPU="true"))
    else:
        ended = amsd(*arguments, "--processes", "2")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("run ") >= 1


def assert_close(one: Path, other: Path) -> None:
    """The same lines, their numbers within the tolerance of float32 sums in another order."""
    first, second = lines(one), lines(other)
    assert [sorted(line) for line in first] == [sorted(line) for line in second]
    for a, b in zip(first, second, strict=True):
        for key, value in a.items():
            if isinstance(value, float) and not key.endswith("p_value"):
                # evaluation scores 8-bit pictures, where the last bit of a float may turn a gray level
                allowed = 2e-4 if key.startswith("eval/") else 1e-5
                if key == "control_to_target":  # of an unchanged policy: the root of what rounding leaves
                    allowed = 1e-3
                assert b[key] == pytest.approx(value, rel=2e-3, abs=allowed), (a["step"], key)


@pytest.mark.parametrize("settings", [(), BUFFER, GROUPS], ids=["on policy", "buffer", "groups"])
def test_two_processes_with_uneven_shares_give_the_losses_of_one(
    recipe: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    in_one(recipe, tmp_path / "one", *UNEVEN, *settings)
    in_two(recipe, tmp_path / "two", *UNEVEN, *settings)
    assert_close(tmp_path / "one", tmp_path / "two")


def test_every_method_in_two_processes_gives_the_run_of_one(recipe: Path, tmp_path: Path) -> None:
    """Those of `METHODS` that no other test here runs, with the user's own launcher."""
    methods = [name for name in METHODS if name not in ("am", "buffer-am")]
    (tmp_path / "one").mkdir()
    for name in methods:
        outcome = CliRunner().invoke(app, every_method.arguments(str(recipe), str(tmp_path / "one"), name))
        assert outcome.exit_code == 0, outcome.output
    launcher = (*LAUNCHERS["accelerate"][:-1], "tests.cli.every_method")
    ended = finish(start(recipe, tmp_path / "two", *methods, launcher=launcher, ACCELERATE_USE_CPU="true"))
    assert ended.returncode == 0, ended.stderr
    for name in methods:
        assert_close(tmp_path / "one" / name, tmp_path / "two" / name)
        first, second = (line for line in lines(tmp_path / "two" / name) if "loss" in line)
        assert first["gradient_norm"] > 0
        assert second["validation/kl"] > 0


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_the_users_own_launcher_gives_the_same_run(recipe: Path, tmp_path: Path, launcher: str) -> None:
    short = ("--set", "training.steps=2", "--set", "evaluation.every=0")
    in_one(recipe, tmp_path / "one", *short)
    in_two(recipe, tmp_path / "two", *short, launcher=launcher)
    assert_close(tmp_path / "one", tmp_path / "two")


def test_a_run_of_two_processes_goes_on_in_one(recipe: Path, tmp_path: Path) -> None:
    in_two(recipe, tmp_path / "run", *UNEVEN, "--set", "training.steps=2", *BUFFER)
    in_one(recipe, tmp_path / "run", *UNEVEN, "--resume", *BUFFER)
    in_one(recipe, tmp_path / "one", *UNEVEN, *BUFFER)
    losses = {name: [line["loss"] for line in lines(tmp_path / name) if "loss" in line] for name in ("run", "one")}
    assert losses["run"] == pytest.approx(losses["one"], rel=2e-3)


def test_one_failing_process_ends_the_command_and_says_why(recipe: Path, tmp_path: Path) -> None:
    reward = 'reward=[{name = "python:tests.cli.rewards:fails_on_process_1"}]'
    ended = amsd("train", recipe, "--output", tmp_path / "run", "--set", reward, "--processes", "2")
    assert ended.returncode == 1
    assert "this card is broken" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_usage_error_found_by_the_processes_keeps_its_code_and_is_said_once(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").write_text("", encoding="utf-8")
    ended = amsd("train", recipe, "--output", tmp_path / "run", "--processes", "2")
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("--resume") == 1
    assert "Traceback" not in ended.stderr
