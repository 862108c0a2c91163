"""Signals that end commands: at any moment, with one message, with a code for schedulers, without halves of files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.commands import amsd, finish, start, wait_until

#: Sends a signal to its own process when a module is about to be imported: a moment that no clock decides.
BELL = """
import os, signal, sys

class Bell:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["BELL_AT"]:
            sys.meta_path.remove(self)
            signal.raise_signal(int(os.environ["BELL"]))

sys.meta_path.insert(0, Bell())
"""
RUN = str(Path(__file__).parents[1] / "data" / "run-0.1.0")
NOTHING = "Nothing is lost: run the same command again."


def rung(at: str, number: int, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command that gets a signal when it is about to import the module `at`; its temporary folder is `folder/tmp`."""
    (folder / "bell").mkdir()
    (folder / "tmp").mkdir()
    (folder / "bell" / "sitecustomize.py").write_text(BELL, encoding="utf-8")
    paths = os.pathsep.join([str(folder / "bell"), os.environ.get("PYTHONPATH", "")])
    named = [argument.replace("{folder}", str(folder)) for argument in arguments]
    return amsd(*named, PYTHONPATH=paths, BELL_AT=at, BELL=str(int(number)), TMPDIR=str(folder / "tmp"))


#: Name of the command -> the module at whose import the signal comes, its arguments, and what it says is kept.
COMMANDS: dict[str, tuple[str, list[str], str]] = {
    "eval": ("torch", ["base"], "What it has evaluated to the end is kept: run the same command again for the rest."),
    "sample": ("torch", ["base", "-p", "a cat", "-o", "{folder}/out"], NOTHING),
    "export": ("torch", [RUN, "-o", "{folder}/out"], NOTHING),
    "diagnose": ("torch", ["shapes"], NOTHING),
    "report": ("amsd.report.source", [RUN, "-o", "{folder}/out.html"], NOTHING),
    "demo": ("torch", [RUN], NOTHING),
    "train": ("torch", ["shapes", "-o", "{folder}/out"], "There is no checkpoint yet. Continue with: amsd train"),
    "recipe check": ("torch", ["shapes"], NOTHING),
    "recipe list": ("rich.table", [], NOTHING),
    "sweep run": ("optuna", ["shapes-smoke", "-o", "{folder}/out"], NOTHING),
    "sweep show": ("optuna", ["{folder}"], NOTHING),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_signal_ends_every_command_with_one_message(command: str, tmp_path: Path) -> None:
    at, arguments, kept = COMMANDS[command]
    ended = rung(at, signal.SIGTERM, tmp_path, *command.split(), *arguments)
    assert ended.returncode == 75, ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(f"SIGTERM has ended amsd {command}. {kept}")
    assert "Traceback" not in ended.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bell", "tmp"]
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_before_the_command_is_known_ends_it_alike(number: signal.Signals, tmp_path: Path) -> None:
    ended = rung("typer", number, tmp_path, "recipe", "schema")
    assert ended.returncode == (130 if number == signal.SIGINT else 75)
    name = "Ctrl-C" if number == signal.SIGINT else number.name
    assert ended.stderr.splitlines() == [f"{name} has ended amsd recipe schema. {NOTHING}"]
    assert not ended.stdout


def test_a_signal_after_the_work_changes_nothing() -> None:
    program = (
        "import atexit, signal, sys; sys.argv = ['amsd', 'recipe', 'list']\n"
        "from amsd.cli import main\n"
        "atexit.register(signal.raise_signal, signal.SIGTERM)\n"  # the first one that is registered runs last
        "main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "shapes" in ended.stdout


@pytest.mark.slow
def test_work_that_a_signal_stops_leaves_no_halves(recipe: Path, tmp_path: Path) -> None:
    out, results, cache = tmp_path / "out", tmp_path / "results", tmp_path / "cache"
    process = start("sample", "base", "--recipe", recipe, "-p", "a cat", "--count", "100000", "-o", out)
    wait_until(lambda: out.is_dir() and len(list(out.iterdir())) > 20, process)
    process.send_signal(signal.SIGUSR1)
    ended = finish(process)
    assert ended.returncode == 75, ended.stderr
    assert f"SIGUSR1 has ended amsd sample. Pictures that it has written to {out} are whole" in ended.stderr
    for picture in out.iterdir():
        assert picture.suffix == ".png"
        Image.open(picture).load()

    settings = ("--set", "evaluation.samples_per_prompt=100", "--set", "evaluation.eta=[0.0, 1.0]")
    process = start("eval", "base", "--recipe", recipe, *settings, "-o", results, AMSD_CACHE=str(cache))
    assert process.stderr is not None
    said = ""
    while "eta1" not in said:  # the first of the two settings is whole
        line = process.stderr.readline()
        assert line, said
        said += line
    process.send_signal(signal.SIGHUP)
    ended = finish(process)
    assert ended.returncode == 75, ended.stderr
    assert "SIGHUP has ended amsd eval. What it has evaluated to the end is kept" in ended.stderr
    kept = [path for path in cache.rglob("*") if path.is_file()]
    assert len(kept) == 3  # values of the reward and of the diversity, pictures
    assert not [path for path in kept if path.suffix == ".tmp"]
    assert not list(results.rglob("*.json"))
