"""docs/walk.md is a transcript: its commands, in their order, print what it shows."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from typer.testing import CliRunner

from amsd.cli.app import app
from benchmarks.walk import Step, absent, agrees, plain, steps, walk

TABLE = """Last checkpoint against the base model
┏━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━┳━━━━━━━┓
┃ metric       ┃   mean ± s.e. ┃ difference to base ┃     p ┃
┡━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━╇━━━━━━━┩
│ shapes:right │ 0.190 ± 0.027 │     +0.262 ± 0.024 │ 1e-08 │
└──────────────┴───────────────┴────────────────────┴───────┘
Run: runs/shapes-0123
"""


def test_lines_are_found_in_their_order_and_numbers_within_their_errors() -> None:
    rows = ("metric mean ± s.e. difference to base p", "shapes:right 0.201 ± 0.027 +0.257 ± 0.024 2e-08")
    assert absent((*rows, "...", "Run: runs/RUN"), TABLE) == []
    assert absent(("Run: runs/RUN", rows[1]), TABLE) == [rows[1]]  # in the other order
    assert absent(("shapes:right 0.301 ± 0.027 +0.257 ± 0.024 2e-08",), TABLE) != []
    assert absent(("shapes:left 0.201 ± 0.027 +0.257 ± 0.024 2e-08",), TABLE) != []
    assert agrees("code: x runs .../sharpness.py.", plain("code: x runs /home/somebody/sharpness.py."))
    assert not agrees("step 1/40 ...", "step 2/40  reward 0.1")


def test_the_page_shows_output_of_every_part() -> None:
    shown = {step.command.split()[1]: step.shown for step in steps() if step.command.startswith("amsd ")}
    assert set(shown) == {"recipe", "train", "report", "sample", "export", "eval", "sweep"}
    assert all([line for line in lines if line.strip() != "..."] for lines in shown.values())


@pytest.mark.slow
def test_the_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE")  # a reader has none

    def run(command: str, folder: Path) -> str:
        monkeypatch.chdir(folder)
        AcceleratorState._reset_state(True)  # one process: each start would cost 8 s
        outcome = CliRunner().invoke(app, shlex.split(command)[1:])
        assert outcome.exit_code == 0, f"$ {command}\n{outcome.output}{outcome.exception}"
        return outcome.output

    walked: list[tuple[Step, list[str]]] = list(walk(tmp_path, run, install=False))
    assert [(step.command, missing) for step, missing in walked if missing] == []
    assert len(walked) == 11
