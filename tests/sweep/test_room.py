"""What holds of the room's own code: one file reaches behind Optuna's interface, and names the version tested."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
from typer.testing import CliRunner

import amsd.sweep
from amsd.cli.app import app
from amsd.sweep import optuna_access
from amsd.sweep.launchers import LAUNCHERS

ROOM = Path(amsd.sweep.__file__).parent
BEHIND = re.compile(
    r"\b_trial_id\b|\b_study_id\b|\._storage\b|\b_suggest\(|system_attrs|\bset_trial_\w+|\bget_all_trials\b|\bget_storage\b"
)


def test_one_file_reaches_behind_optuna() -> None:
    outside = {file.name for file in ROOM.rglob("*.py") if BEHIND.search(file.read_text(encoding="utf-8"))}
    assert outside == {"optuna_access.py", "storage.py"}  # storage.py wraps a whole storage, method by method


def test_the_optuna_that_is_tested_is_the_one_that_is_named() -> None:
    tested = re.search(
        r"^optuna==(.+)$", (ROOM.parents[1] / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert tested is not None
    assert f"Tested with Optuna {tested[1]}." in str(optuna_access.__doc__)


def test_every_launcher_has_its_row() -> None:
    for target in LAUNCHERS.values():
        module, _, kind = target.partition(":")
        assert callable(getattr(import_module(module), kind)().launch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--launcher", "slrm"], "'slrm' is not a launcher. Did you mean 'slurm'?"),
        (["--backend", "wandb", "--launcher", "ray"], "backends are optuna and wandb (wandb on this machine only)"),
        (["--backend", "nobody"], "backends are optuna and wandb (wandb on this machine only)"),
    ],
)
def test_a_dry_run_refuses_what_the_sweep_would(options: list[str], message: str) -> None:
    outcome = CliRunner().invoke(app, ["sweep", "run", "shapes-smoke", "--dry-run", *options])
    assert message in str(outcome.exception)
