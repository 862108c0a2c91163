"""Offline runs of a sweep arrive at a W&B-compatible server through the unmodified `wandb sync`.

The server is openwandb (PyPI; its license is non-commercial, so it is no dependency of amsd). It runs in an environment
of its own: `python -m venv ENV && ENV/bin/pip install openwandb`, and `OPENWANDB=ENV/bin/openwandb` names it to
this test; `nox -s wandb_server` does all that. It answers no `wandb.Api` and keeps no field for a run's group, so runs
are read back over its REST interface, with the group in the run's configuration (that the client gives W&B the group
itself is shown in `tests/tracking`).
"""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amsd.sweep.launchers.processes import ProcessExecutor
from amsd.sweep.results import load_sweep
from amsd.sweep.study import create
from amsd.sweep.worker import Worker
from tests.conftest import openwandb
from tests.sweep.conftest import MakePlan
from tests.sweep.real import real_plan
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.wandb_server, pytest.mark.timeout(1500)]

#: The key that openwandb prints at its start: every installation has it.
KEY = "local" + 40 * "0"
METRIC = "eval/shapes:right"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    program = openwandb()
    assert program is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, data = f"http://127.0.0.1:{port}", str(tmp_path / "openwandb")
    options = ["--host", "127.0.0.1", "--port", str(port), "--data-dir", data, "--base-url", url]
    with (tmp_path / "openwandb.log").open("wb") as log:
        process = subprocess.Popen([program, "serve", *options], stdout=log, stderr=subprocess.STDOUT)
    try:
        until(lambda: answers(url) or process.poll() is not None)
        assert process.poll() is None, (tmp_path / "openwandb.log").read_text()
        yield url
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/login", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def read(url: str, path: str) -> dict[str, Any]:
    credentials = base64.b64encode(f"api:{KEY}".encode()).decode()
    request = urllib.request.Request(url + path, headers={"Authorization": f"Basic {credentials}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        content: dict[str, Any] = json.loads(answer.read())
        return content


def test_offline_runs_of_a_sweep_arrive(make_plan: MakePlan, tmp_path: Path, server: str) -> None:
    folder = tmp_path / "sweep"
    plan = real_plan(make_plan, tracking="offline", budget={"trials": 2})
    Worker(create(plan, folder), ProcessExecutor(plan.sweep.execution)).run()
    results = load_sweep(folder)
    assert [trial.state for trial in results.trials] == ["complete"] * 2
    offline = [str(path) for path in sorted(folder.glob("trials/*/seed-0/run/wandb/offline-run-*"))]
    assert len(offline) == 2
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("WANDB_")},
        "WANDB_BASE_URL": server, "WANDB_API_KEY": KEY, "HOME": str(tmp_path),
    }  # fmt: skip
    command = [sys.executable, "-m", "wandb", "sync", "--yes", *offline]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = {run["display_name"]: run for run in read(server, "/api/v2/projects/default/amsd/runs")["runs"]}
    assert set(runs) == {f"small-{trial.number:04d}-seed0" for trial in results.trials}
    for trial in results.trials:
        arrived = runs[f"small-{trial.number:04d}-seed0"]
        assert arrived["state"] == "finished"
        assert arrived["config"]["tracking"]["value"]["group"] == "small"
        assert json.loads(arrived["tags_json"]) == [f"eta={trial.params['schedule.eta']:.4g}"]
        metrics = read(server, f"/api/v2/runs/{arrived['run_id']}/metrics")["metrics_by_key"]
        check_evaluations(metrics, trial.runs[0].directory)


def check_evaluations(metrics: dict[str, list[dict[str, Any]]], run: Path) -> None:
    """Every evaluation with its own axis `eval/step`, as the run's own log has it."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = {line["step"]: line[METRIC] for line in lines if "evaluation" in line}
    axis = {point["step"]: point["value"] for point in metrics["eval/step"]}
    found = {axis[point["step"]]: point["value"] for point in metrics[METRIC]}
    assert found == pytest.approx(logged)
    assert sorted(logged) == [0, 1, 2, 3, 4]
    training = {line["step"] for line in lines if "loss" in line}
    assert len(metrics["loss"]) == len(training) == 4
