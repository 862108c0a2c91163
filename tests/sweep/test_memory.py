"""What a sweep says of GPU memory before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from amsd.cli.app import app
from amsd.sweep import checks
from tests.sweep.conftest import MakePlan

GIB = 2**30


def driver_of(folder: Path, monkeypatch: pytest.MonkeyPatch, *mebibytes: int) -> None:
    """A driver's program that lists GPUs of these sizes."""
    program = folder / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '" + "".join(f"{size}\\n" for size in mebibytes) + "'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_share_that_is_too_small_is_said(
    make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver_of(tmp_path, monkeypatch, 24576, 12288)
    monkeypatch.setattr(checks, "needed_bytes", lambda plan: 7.0 * GIB)
    whole, half = make_plan(execution={"gpus": 1}), make_plan(execution={"gpus": 0.5})
    assert len(list(checks.memory_lines(whole))) == 1
    _, verdict = checks.memory_lines(half)
    assert verdict == (
        "That does not fit: a trial's share of the smallest GPU here is 6.0 GiB. Set execution.gpus = 1."
    )
    monkeypatch.setattr(checks, "needed_bytes", lambda plan: 13.0 * GIB)
    _, verdict = checks.memory_lines(whole)
    assert "12.0 GiB. Use a smaller parameterization or precision" in verdict


def test_a_dry_run_says_what_the_plan_needs() -> None:
    done = CliRunner().invoke(app, ["sweep", "run", "cfg-eta", "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "GiB per process for weights, gradients and optimizer of the base recipe" in done.output
