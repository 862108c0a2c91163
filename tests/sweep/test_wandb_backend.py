"""`--backend wandb` against a server on loopback, driven by the unmodified W&B client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import yaml

from amsd.errors import UsageError
from amsd.recipe import load_recipe
from amsd.sweep.export import as_wandb_yaml, wandb_configuration
from amsd.sweep.load import load_plan, plan_from, restore_plan
from amsd.sweep.schema import SweepPlan
from tests.sweep.conftest import FAKE_TRAINER, MakePlan
from tests.sweep.wandb_server import SweepServer
from tests.waiting import gone, until

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


@pytest.mark.parametrize("name", ["cfg-eta", "shapes-smoke", "sd15-cfg-eta", "sd15-smoke"])
def test_the_file_is_one_that_wandb_takes(name: str) -> None:
    """Against the schema of W&B's package `sweeps`, where it is installed; `run_cap` is younger than that."""
    jsonschema = pytest.importorskip("jsonschema")
    try:
        package = distribution("sweeps")
    except PackageNotFoundError:
        pytest.skip("W&B's package sweeps is not installed")
    schema = json.loads(Path(str(package.locate_file("sweeps/config/schema.json"))).read_text())
    configuration = yaml.safe_load(as_wandb_yaml(load_plan(name)))
    configuration.pop("run_cap")
    assert [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(configuration)] == []
    configuration["parameters"]["schedule.eta"] = {"low": 1}
    assert not jsonschema.Draft7Validator(schema).is_valid(configuration)


def test_the_file_holds_recipe_overrides_and_conditions() -> None:
    configuration = yaml.safe_load(as_wandb_yaml(load_plan("cfg-eta")))
    assert configuration["program"] == "amsd"
    command = configuration["command"]
    plan = restore_plan(json.loads(command[command.index("--plan") + 1]))
    assert plan == load_plan("cfg-eta")
    assert plan.recipe.evaluation.guidance_scale == (5.0,)
    assert plan.sweep.search["guidance.guidance_in_adjoint_computation"].when
    with pytest.raises(UsageError, match="does not take the name 'the mode'"):
        wandb_configuration(make_named("the mode"))


def make_named(name: str) -> SweepPlan:
    from amsd.recipe.catalog import folder
    from amsd.recipe.load import read_toml

    variants = {"variants": {"a": {"schedule.eta": 1.0}}}
    tree = {"name": "s", "recipe": "shapes", "search": {name: variants}, "budget": {"trials": 1},
            "objective": [{"metric": "shapes:right"}]}  # fmt: skip
    return plan_from(tree, read_toml(folder("recipes") / "shapes.toml"))


@pytest.mark.slow
def test_the_command_that_wandbs_agent_renders_runs_the_point(tmp_path: Path) -> None:
    """Rendered by the functions of the W&B client that its agent uses."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    (tmp_path / "small.toml").write_text(SWEEP)
    configuration = yaml.safe_load(as_wandb_yaml(load_plan(tmp_path / "small.toml")))
    chosen = {"schedule.eta": 0.75, "guidance.guidance_scale": 1.0, "guidance.guidance_in_adjoint_computation": True}
    words: dict[str, list[str]] = create_sweep_command_args({"args": {k: {"value": v} for k, v in chosen.items()}})
    words |= {"env": [], "program": [configuration["program"]]}
    rendered: list[str] = []
    for part in create_sweep_command(list(configuration["command"])):
        rendered += words[part[2:-1]] if part.startswith("${") else [part]
    assert rendered[0] == "python"
    done = subprocess.run(
        [sys.executable, *rendered[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "WANDB_RUN_ID": "r1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.glob("runs/sweep-small/trials/wandb-r1-*/seed-0")
    recipe = load_recipe(run / "recipe.toml")
    assert recipe.schedule.eta == 0.75
    assert recipe.training.steps == 4  # an override
    assert recipe.guidance.guidance_in_adjoint_computation is False  # its condition does not hold
    assert f"shapes:right = {-((0.75 - 0.8) ** 2):.6g}" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_agents_hand_back_on_sigterm(tmp_path: Path, workers: int) -> None:
    points = [{"schedule.eta": 0.75, "guidance.guidance_scale": 1.0, "guidance.guidance_in_adjoint_computation": True}]
    held = tmp_path / "held"
    held.touch()
    with SweepServer(points * 2) as server:
        (tmp_path / "small.toml").write_text(SWEEP)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
        environment |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "FAKE_HELD_WHILE": str(held),
                        "WANDB_API_KEY": "0123456789" * 4, "WANDB_BASE_URL": server.url}  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-m", "amsd", "sweep", "run", str(tmp_path / "small.toml"), "--backend", "wandb",
             "--output", str(tmp_path / "out"), "--workers", str(workers)],
            cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            until(lambda: len(list(tmp_path.glob("out/trials/*/seed-0/run/steps.txt"))) == workers, 300)
            process.terminate()
            output, _ = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 75, output
    for run in tmp_path.glob("out/trials/*/seed-0/run"):
        assert gone(int((run / "starts.txt").read_text().split()[0]))
        assert (run / "checkpoints/step-000002").is_dir()
