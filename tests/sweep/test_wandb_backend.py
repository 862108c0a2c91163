"""`--backend wandb` against a server on loopback, driven by the unmodified W&B client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from amsd.errors import UsageError
from amsd.recipe import load_recipe
from amsd.sweep.plan import load_plan
from amsd.sweep.wandb_backend import as_wandb_yaml, wandb_configuration
from tests.sweep.conftest import FAKE_TRAINER, MakePlan
from tests.sweep.wandb_server import SweepServer

SWEEP = f"""
recipe = "shapes"
override = {{ "training.steps" = 4, "training.checkpoint_every" = 2 }}
objective = [{{ metric = "shapes:right" }}]
budget = {{ trials = 3 }}
[search."schedule.eta"]
low = 0.5
high = 1.5
[search."guidance.guidance_scale"]
choices = [1.0, 5.0]
[search."guidance.guidance_in_adjoint_computation"]
choices = [false, true]
when."guidance.guidance_scale".above = 1.0
[execution]
command = ["{sys.executable}", "{FAKE_TRAINER}"]
poll_seconds = 0.1
"""


def run_sweep(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "small.toml").write_text(SWEEP)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    command = [sys.executable, "-m", "amsd", "sweep", "run", str(folder / "small.toml"), "--backend", "wandb"]
    return subprocess.run(
        [*command, "--output", str(folder / "out"), *options], cwd=folder, capture_output=True, text=True, timeout=300,
        env={**clean, "HOME": str(folder), "NETRC": str(folder / "netrc"), **environment}, check=False,
    )  # fmt: skip


def test_the_configuration_is_the_same_search() -> None:
    configuration = yaml.safe_load(as_wandb_yaml(load_plan("cfg-eta")))
    assert configuration["method"] == "bayes"
    assert configuration["metric"] == {"name": "eval/shapes:right", "goal": "maximize"}
    assert configuration["run_cap"] == 30
    assert configuration["early_terminate"]["type"] == "hyperband"
    parameters = configuration["parameters"]
    assert parameters["schedule.eta"] == {"distribution": "uniform", "min": 0.3, "max": 1.2}
    assert parameters["guidance.guidance_in_control_computation"] == {"values": [False, True]}


def test_seeds_become_runs_and_what_wandb_lacks_is_refused(make_plan: MakePlan) -> None:
    assert wandb_configuration(make_plan(seeds=[0, 1]))["parameters"]["training.seed"] == {"values": [0, 1]}
    with pytest.raises(UsageError, match="one objective and no constraints"):
        wandb_configuration(load_plan("lambda-pareto"))
    with pytest.raises(UsageError, match=r"only budget\.trials"):
        wandb_configuration(make_plan(budget={"seconds": 60.0}))


@pytest.mark.slow
def test_without_a_key_it_says_at_once_what_to_set(tmp_path: Path) -> None:
    done = run_sweep(tmp_path)
    assert done.returncode == 2
    assert "WANDB_API_KEY" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "trials").exists()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_agents_run_every_point_once(tmp_path: Path, workers: int) -> None:
    points = [
        {"schedule.eta": 0.75, "guidance.guidance_scale": 5.0, "guidance.guidance_in_adjoint_computation": True},
        {"schedule.eta": 1, "guidance.guidance_scale": 1.0, "guidance.guidance_in_adjoint_computation": True},
        {"schedule.eta": 1.25, "guidance.guidance_scale": 5.0, "guidance.guidance_in_adjoint_computation": False},
    ]
    with SweepServer(points) as server:
        done = run_sweep(tmp_path, "--workers", str(workers), WANDB_API_KEY="0123456789" * 4, WANDB_BASE_URL=server.url)
    logs = "".join(path.read_text() for path in tmp_path.glob("out/workers/*"))
    assert done.returncode == 0, done.stderr + logs
    assert len(server.sweeps) == 1
    created = yaml.safe_load(server.sweeps[0]["config"])
    assert created == wandb_configuration(load_plan(str(tmp_path / "small.toml")))
    assert server.agents == workers
    runs = sorted(tmp_path.glob("out/trials/*/seed-0/run"))
    assert len(runs) == 3
    for run in runs:
        agent = json.loads((run / "agent.json").read_text())
        point = server.handed[agent["WANDB_RUN_ID"]]  # the run is opened under the agent's id
        assert agent["WANDB_SWEEP_ID"] == "sweep1"
        recipe = load_recipe(run.parent / "recipe.toml")
        assert recipe.schedule.eta == point["schedule.eta"]
        assert recipe.guidance.guidance_scale == point["guidance.guidance_scale"]
        guided = point["guidance.guidance_scale"] > 1
        assert recipe.guidance.guidance_in_adjoint_computation == (
            guided and point["guidance.guidance_in_adjoint_computation"]
        )
        assert len((run / "starts.txt").read_text().splitlines()) == 1
