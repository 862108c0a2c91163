"""The command line as such: what it loads, how it fails, what it says."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from amsd.cli.app import app
from amsd.cli.launch import require_one_task
from amsd.cli.outputs import hanging
from amsd.errors import UsageError
from amsd.run_directory import RunDirectory
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


@pytest.mark.parametrize("group", [[], ["recipe"], ["sweep"]])
def test_every_command_is_on_the_help_page_in_one_whole_line(group: list[str]) -> None:
    page = CliRunner().invoke(app, [*group, "--help"], terminal_width=80).output
    lines = page.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert len(lines) >= 4
    for line in lines:
        assert line.endswith("."), line
        assert not line.endswith("..."), line


def test_the_list_of_recipes_fits_80_columns_uncut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = CliRunner().invoke(app, ["recipe", "list"]).output
    assert "…" not in text
    assert len(text.splitlines()) == 1 + len(list((Path(__file__).parents[2] / "recipes").glob("*.toml")))
    assert "stable-diffusion-v1-5" in text


#: What a run would stumble over -> a part of the message; `recipe check`, `--dry-run` and `train` say it alike.
MISSING = {
    "prompts": ("prompts.train=absent.txt", "absent.txt: no such prompt file"),
    "held-out prompts": ("prompts.evaluation=absent.csv", "absent.csv: no such prompt file"),
    "an empty list": ("prompts.train=[]", "prompts.train (a list): holds no prompt (it is empty)"),
    "a data set of no name": ("prompts.evaluation=hub:", "'hub:' must have the form hub:ID"),
    "no data set's name": ("prompts.train=hub:a b", "is neither a folder nor a hub id"),
    "a model's folder": ("model.pretrained=./absent", "model.pretrained = './absent': there is nothing at this path"),
    "a model's file": ("model.pretrained=absent.safetensors", "there is nothing at this path"),
    "a scorer": ('evaluation.metrics=["clip-scor"]', "Did you mean 'clip-score'?"),
    "a reward's file": ('reward=[{name="python:absent.py:f"}]', "no file 'absent.py'"),
    "a reward's module": ('reward=[{name="python:absent_module:f"}]', "no module 'absent_module'"),
    "a reward's function": ('reward=[{name="python:mine.py:g"}]', "mine.py has nothing called 'g'"),
    "a tracker": ('tracking.trackers=["wandbb"]', "wandbb"),
}
WAYS = (("recipe", "check", "shapes"), ("train", "shapes", "--dry-run"), ("train", "shapes"))


@pytest.mark.parametrize("case", MISSING)
def test_what_a_run_lacks_is_said_alike_and_before_anything_is_created(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("raise SystemExit('ran')\ndef f(images, prompts): ...\n", encoding="utf-8")
    change, reason = MISSING[case]
    for way in WAYS:
        outcome = CliRunner().invoke(app, [*way, "--set", change])
        assert isinstance(outcome.exception, UsageError), (way, outcome.output, outcome.exception)
        assert reason in str(outcome.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


def test_everything_that_is_missing_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    changes = [word for change, _ in list(MISSING.values())[:2] for word in ("--set", change)]
    outcome = CliRunner().invoke(app, ["recipe", "check", "shapes", *changes])
    assert "2 things are missing or wrong" in str(outcome.exception)
    assert "absent.txt" in str(outcome.exception)
    assert "absent.csv" in str(outcome.exception)


def test_a_disk_that_is_too_small_is_said_before_a_run_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    full = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr("amsd.experiment.inputs.shutil.disk_usage", lambda path: full)
    monkeypatch.setattr("amsd.experiment.rehearsal.can_try", lambda recipe, processes: False)
    for way in WAYS[1:]:
        outcome = CliRunner().invoke(app, list(way))
        assert isinstance(outcome.exception, UsageError)
        assert "2 checkpoints of 0.0129 GB take 0.0259 GB, but 0.001 GB are free" in str(outcome.exception)
        assert ("checkpoints  " in outcome.stdout) == ("--dry-run" in way)  # the plan may be for another machine
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("way", [*WAYS[:2], ("sweep", "run", "shapes-smoke", "--dry-run")])
def test_a_tracker_without_its_package_is_said_by_every_check(
    way: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("amsd.tracking.backend.find_spec", lambda name: None)
    monkeypatch.setattr("amsd.experiment.rehearsal.can_try", lambda recipe, processes: False)
    key = "override.tracking.trackers" if way[0] == "sweep" else "tracking.trackers"
    outcome = CliRunner().invoke(app, [*way, "--set", f'{key}=["trackio"]'])
    assert outcome.exit_code == 0, outcome.output
    assert "the package trackio is not installed" in outcome.stderr
    assert "amsd[trackio]" in outcome.stderr


def test_advice_is_given_by_the_check_and_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for way in WAYS[:2]:
        outcome = CliRunner().invoke(
            app, [*way, "--set", "optimizer.warmup_steps=200", "--set", "evaluation.prompts=99"]
        )
        assert outcome.exit_code == 0, outcome.exception
        assert "is longer than the run of 40 steps" in outcome.stderr
        assert "evaluation.prompts = 99, but there are 16 evaluation prompts" in outcome.stderr


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["schedule.eta=1.5"], "eta = 1.5 is too large for"),
        (["schedule.eta=0.1"], "The sampler remembers its initial noise (correlation"),
        (["schedule.eta=0.1", "method={name = 'ddpo'}"], ""),  # it needs no memoryless sampler
    ],
)
def test_what_the_run_says_of_its_sampler_is_said_before(
    settings: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for way in WAYS[: 2 if "eta" in said else 1]:
        outcome = CliRunner().invoke(app, [*way, *(word for each in settings for word in ("--set", each))])
        assert outcome.exit_code == 0, outcome.exception
        assert (f"Warning: {said}" in outcome.stderr) if said else ("noise" not in outcome.stderr)


def test_a_malformed_prompt_file_is_an_error_of_the_check(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.json"
    prompts.write_text("{", encoding="utf-8")
    ended = command("recipe", "check", "shapes", "--set", f"prompts.train={prompts}")
    assert ended.returncode == 2
    assert str(prompts) in ended.stderr


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
    "a file for pictures": (["sample", "base", "-p", "a cat", "--out", "{file}"], "--output"),
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


UNSET = (
    "train @ -o new", "train shapes -o @", "train shapes --dry-run -o @", "eval @", "eval base --recipe @",
    "eval base -o @", "eval base --watch @", "eval base --table @", "eval base --base @", "sample @ -p a -o new",
    "sample base -p a -o @", "export @ -o new", "export new -o @", "demo @", "diagnose @", "report @",
    "report new @", "report new -o @",
    "recipe check @", "recipe show @", "sweep run @", "sweep run shapes-smoke --storage @",
    "export new -o old --push @", "sweep run shapes-smoke -o @", "sweep show @", "sweep best @",
    "sweep best new -o @", "sweep export @", "sweep export shapes-smoke -o @", "sweep worker --storage @",
    "sweep worker --storage new --directory @", "sweep worker --storage new --sweep @", "sweep point -o @",
)  # fmt: skip


@pytest.mark.parametrize("line", UNSET)
def test_a_shell_variable_that_is_unset_names_no_place(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--output" if word == "-o" else word for word in line.split(" ")]
    for nothing in ("", " "):
        outcome = CliRunner().invoke(app, [nothing if word == "@" else word for word in arguments])
        assert outcome.exit_code == 2, outcome.output
        assert f"{nothing!r} names nothing" in outcome.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", [line for line in UNSET if line.endswith("-o @")])
@pytest.mark.parametrize("character", ["\n", "\t", "\x1b", "\x7f", "\u2028"])
def test_nothing_is_created_whose_name_a_terminal_does_not_show(
    line: str, character: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [word.replace("@", f"a{character}b").replace("-o", "--output") for word in line.split(" ")]
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 2, outcome.output
    assert f"{character!r}"[1:-1] in outcome.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "reason"), [("a b", "is not OWNER/REPOSITORY"), ("me/mine", "HF_HUB_OFFLINE is set")])
def test_an_upload_that_cannot_be_is_said_before_the_export(
    name: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    outcome = CliRunner().invoke(app, ["export", "run", "--output", "new", "--push", name])
    assert isinstance(outcome.exception, UsageError)
    assert f"--push {name!r} {reason}" in str(outcome.exception) or f"--push {name}: {reason}" in str(outcome.exception)
    assert not list(tmp_path.iterdir())


def test_from_python_an_empty_text_is_no_run_directory() -> None:
    with pytest.raises(UsageError, match=r"output '' names no folder; '\.' is the current one"):
        RunDirectory("")


def test_debug_shows_the_traceback() -> None:
    ended = command("--debug", "eval", "nowhere")
    assert ended.returncode != 0
    assert "Traceback" in ended.stderr
    assert "UsageError" in ended.stderr


def test_tasks_of_srun_that_do_not_know_of_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    refused = CliRunner().invoke(app, ["train", "shapes", "--dry-run"])
    assert isinstance(refused.exception, UsageError)
    assert "srun has started 4 tasks" in str(refused.exception)
    for name, value in (("SLURM_STEP_NUM_TASKS", "1"), ("AMSD_SWEEP_RUN", "1"), ("WORLD_SIZE", "4")):
        with monkeypatch.context() as patch:  # one task, workers of a sweep, processes of torchrun
            patch.setenv(name, value)
            require_one_task()


def test_the_list_of_sweeps_breaks_between_words_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hanging("a  ", "long " * 40) == "a  " + "long " * 40  # in a pipe, one line for other programs
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    lines = hanging("a  ", "long " * 40).splitlines()
    assert all(len(line) <= 40 and line.split() == [*["a"] * (line[0] == "a"), *["long"] * 7] for line in lines[:-1])
    assert {line[:3] for line in lines[1:]} == {"   "}
