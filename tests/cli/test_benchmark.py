"""`amsd eval base --table DIR` on a tiny pipeline: the protocol's four settings as three files and a W&B table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from amsd.cli.app import app
from tests import pipelines

RECIPE = """
[model]
pretrained = "{model}"
[schedule]
num_inference_steps = 3
[method]
timesteps_per_trajectory = 1
[[reward]]
name = "brightness"
[prompts]
evaluation = ["a blue square", "a tree"]
"""
SMALL = ("--set", "evaluation.metrics=['colorfulness']", "--set", "evaluation.diversity=['pixels']",
         "--set", "evaluation.samples_per_prompt=2")  # fmt: skip


@pytest.mark.slow
def test_the_table_is_one_command(tmp_path: Path) -> None:
    pipelines.stable_diffusion().save_pretrained(tmp_path / "model")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(model=tmp_path / "model"), encoding="utf-8")
    folder = tmp_path / "table"
    arguments = ["eval", "base", "--recipe", str(recipe), "--table", str(folder), *SMALL]
    outcome = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    assert outcome.stdout.split() == [str(folder / f"benchmark.{kind}") for kind in ("json", "csv", "md")]
    rows = json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))["rows"]
    assert len(rows) == 4 * 3
    assert {row["metric"] for row in rows} == {"brightness", "colorfulness", "diversity/pixels"}
    assert all(row["published"] is None for row in rows)
    assert len(list((folder / "base").glob("*.json"))) == 4
    assert list((folder / "wandb").glob("offline-run-*"))
