"""The files that make a Ray cluster elsewhere: they parse, and the amsd commands in them are commands."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from amsd.cli.app import app

FOLDER = Path(__file__).parents[2] / "docs" / "ray"


def commands(text: str) -> list[str]:
    joined = re.sub(r"\\\n\s*", " ", text)
    return re.findall(r"amsd (sweep run .*)", joined)


@pytest.mark.parametrize("file", sorted(FOLDER.iterdir()), ids=lambda file: file.name)
def test_the_sweep_command_of_every_file_parses(file: Path) -> None:
    found = [command for command in commands(file.read_text()) if "--output" in command]
    assert found
    for command in found:
        plain = re.sub(r"\$\(\(.*?\)\)|\$\{?#?\w+(\[@\])?\}?", "8", command).removesuffix("&").strip()
        group: Any = typer.main.get_command(app)
        context = group.commands["sweep"].commands["run"].make_context("run", shlex.split(plain)[2:])
        assert context.params["launcher"] == "ray"
        assert context.params["ray_address"]
        context.close()


def test_the_slurm_job_is_a_shell_script_that_asks_for_a_signal() -> None:
    script = FOLDER / "slurm.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    options = re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script.read_text(), flags=re.MULTILINE)
    assert dict(options)["signal"] == "B:TERM@300"


def test_kuberay_and_skypilot_say_what_they_need() -> None:
    job = yaml.safe_load((FOLDER / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for pod in pods:
        spec = pod["template"]["spec"]
        mounted = {mount["name"] for container in spec["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}
    assert cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    task = yaml.safe_load((FOLDER / "skypilot.yaml").read_text())
    assert task["num_nodes"] == 4
    subprocess.run(["bash", "-n"], input=task["run"], text=True, check=True)
