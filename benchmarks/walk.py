"""Walks through docs/walk.md: runs its commands in order in a new folder and compares what they print with the page.

    python benchmarks/walk.py             # with the amsd of this environment; some minutes
    python benchmarks/walk.py --install   # from a fresh clone and a new environment, the demo's too

A line of the page must be printed by its command, in the order of the page. `...` stands for anything, `RUN` for the
name of the first run's folder. Numbers before and after ± may differ by that error: another processor rounds otherwise.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "walk.md"
_BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
_BORDERS = re.compile("[─━│┃┏┓┗┛┡┩┌┐└┘├┤┬┴┼╇╈╋┳┻]+")
_MEASURED = re.compile(r"(?<![\w.])([+-]?\d*\.?\d+) ± (\d*\.?\d+)(?:\s+\S+$)?")
_NEEDS_INSTALL = re.compile(r"python3 -m venv|uv |source |demo-env/")
_LONGEST_START = 300.0
"""Seconds that a command which serves until it is interrupted may take to say its last line."""


@dataclass(frozen=True)
class Step:
    """A command of the page, and the lines that it shows of its output."""

    command: str
    shown: tuple[str, ...]


def steps(page: Path = PAGE) -> list[Step]:
    """The commands of the page in their order."""
    found: list[tuple[str, list[str]]] = []
    for block in _BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif found:
                found[-1][1].append(line)
    return [Step(command, tuple(lines)) for command, lines in found]


def absent(shown: tuple[str, ...], printed: str) -> list[str]:
    """Lines of the page that the command did not print, in the page's order."""
    lines = iter([plain(line) for line in printed.splitlines()])
    missing = []
    for wanted in shown:
        if wanted.strip() == "...":
            continue
        rest = list(lines)
        place = next((n for n, line in enumerate(rest) if agrees(plain(wanted), line)), None)
        if place is None:
            missing.append(wanted)
        lines = iter(rest if place is None else rest[place + 1 :])
    return missing


def plain(line: str) -> str:
    """A line without the borders of a table, and with one space between words."""
    return " ".join(_BORDERS.sub(" ", line).split())


def agrees(wanted: str, line: str) -> bool:
    """Whether a printed line is what the page shows: the same words, and measured numbers within their errors."""
    words, pairs = _parted(wanted)
    others, found = _parted(line)
    pattern = ".*".join(re.escape(part) for part in words.split("...")).replace("runs/RUN", r"runs/[\w.-]+")
    if re.fullmatch(pattern, others) is None or len(pairs) > len(found):
        return False
    return all(abs(a - b) <= max(error, other) for (a, error), (b, other) in zip(pairs, found, strict=False))


def _parted(line: str) -> tuple[str, list[tuple[float, float]]]:
    """A line without its measured numbers (and the p-value that ends it), and these with their errors."""
    pairs = [(float(value), float(error)) for value, error in _MEASURED.findall(line)]
    return _MEASURED.sub("#", line), pairs


def own_reward() -> str:
    """The file that the page on rewards tells its reader to write."""
    page = (ROOT / "docs" / "own-reward.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(# sharpness\.py\n.*?)```", page, re.DOTALL)
    return str(block)


def walk(folder: Path, run: Callable[[str, Path], str], install: bool) -> Iterator[tuple[Step, list[str]]]:
    """Run every command in `folder` by `run` (command, folder -> what it printed); with each, the lines it lacks.

    Commands that install, and those of the demo's own environment, are left out without `install`.
    """
    (folder / "sharpness.py").write_text(own_reward(), encoding="utf-8")
    name = "RUN"
    for step in steps():
        if not install and _NEEDS_INSTALL.search(step.command):
            continue
        printed = run(step.command.replace("runs/RUN", f"runs/{name}"), folder)
        if name == "RUN" and (found := re.search(r"^Run: runs/(\S+)$", printed, re.MULTILINE)):
            name = found[1]
        yield step, absent(step.shown, printed)


def in_shell(command: str, folder: Path) -> str:
    """Run a command as a reader does, in the folder's own environment where it has one."""
    activate = "source .venv/bin/activate; " if (folder / ".venv").is_dir() else ""
    # A reader's cache is empty: a result that an earlier walk left there would be read instead of made.
    environment = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1", "AMSD_CACHE": str(folder / ".cache")}
    environment.pop("PYTHONPATH", None) if activate else environment.update(PYTHONPATH=str(ROOT))
    line = ["bash", "-c", f"{activate}{command}"]
    if "amsd demo" in command:
        return _until_it_serves(line, folder, environment)
    done = subprocess.run(
        line, cwd=folder, env=environment, text=True, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        raise SystemExit(f"$ {command}\n{done.stdout}\nexit code {done.returncode}")
    return done.stdout


def _until_it_serves(line: list[str], folder: Path, environment: dict[str, str]) -> str:
    """Start a server, and end it when it says its address."""
    with subprocess.Popen(
        line, cwd=folder, env={**environment, "PYTHONUNBUFFERED": "1"}, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as server:  # fmt: skip
        late = threading.Timer(_LONGEST_START, os.killpg, (server.pid, signal.SIGKILL))
        late.start()
        assert server.stdout is not None
        said = []
        for text in server.stdout:
            said.append(text)
            if "URL:" in text:
                os.killpg(server.pid, signal.SIGTERM)  # SIGINT is ignored by what a shell started with `&`
                break
        said.append(server.stdout.read())
        late.cancel()
    return "".join(said)


def main(
    install: Annotated[bool, typer.Option("--install", help="Begin with a fresh clone and a new environment.")] = False,
) -> None:
    """Print each command and whether it printed what the page shows; exit code 1 if one did not."""
    folder = Path(tempfile.mkdtemp(prefix="amsd-walk-"))
    wrong = 0
    try:
        if install:
            subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
        for step, missing in walk(folder, in_shell, install):
            typer.echo(f"{'differs' if missing else 'as shown'}  $ {step.command}")
            for line in missing:
                typer.echo(f"    not printed: {line}")
            wrong += bool(missing)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    raise typer.Exit(min(wrong, 1))


if __name__ == "__main__":
    typer.run(main)
