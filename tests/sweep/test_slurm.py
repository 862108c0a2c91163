"""Slurm: the script that would be submitted, and workers run by submitit's local executor."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from amsd.errors import UsageError
from amsd.sweep.launchers import Launch
from amsd.sweep.launchers.slurm import SlurmLauncher, make_executor, parameters, submit_to
from amsd.sweep.results import load_sweep
from amsd.sweep.schema import Slurm
from amsd.sweep.storage import STORAGE_VARIABLE, default_url
from amsd.sweep.study import create
from tests.sweep.conftest import MakePlan

submitit = pytest.importorskip("submitit")


def test_the_script_asks_for_what_the_sweep_says() -> None:
    from submitit.slurm.slurm import _make_sbatch_string

    slurm = Slurm(partition="gpu", account="lab", minutes=90, cpus=4, memory_gb=64, setup=("module load cuda",))
    options = parameters(slurm, "cfg-eta", processes=2)
    common = {"name": "job_name", "timeout_min": "time", "mem_gb": "mem"}
    words = {common.get(key, key.removeprefix("slurm_")): value for key, value in options.items()}
    words["mem"] = f"{words['mem']}GB"
    script = _make_sbatch_string(command="amsd sweep worker", folder="/tmp/x", **words)
    for line in ("--job-name=amsd-cfg-eta", "--time=90", "--cpus-per-task=4", "--gpus-per-node=2", "--mem=64GB",
                 "--partition=gpu", "--account=lab", "--nodes=1"):  # fmt: skip
        assert f"#SBATCH {line}" in script
    assert script.index("module load cuda") < script.index("amsd sweep worker")


def test_slurm_without_slurm_or_shared_storage_is_refused(make_plan: MakePlan, tmp_path: Path) -> None:
    def launch(storage: str | None) -> None:
        SlurmLauncher().launch(Launch(make_plan(), tmp_path, storage, 2, lambda _: nullcontext(lambda: None)))

    with pytest.raises(UsageError, match="need --storage postgresql"):
        launch(None)
    with pytest.raises(UsageError, match="cannot submit Slurm jobs"):
        launch("postgresql://nobody@127.0.0.1:1/x")


@pytest.mark.slow
def test_two_jobs_of_the_local_executor_complete_the_sweep(
    make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(budget={"trials": 3})
    handle = create(plan, tmp_path)
    monkeypatch.setenv(STORAGE_VARIABLE, default_url(tmp_path))
    jobs = submit_to(make_executor(plan, tmp_path, "local"), handle, 2)
    for job in jobs:
        job.result()
    results = load_sweep(tmp_path)
    assert [trial.state for trial in results.trials] == ["complete"] * 3
    assert list((tmp_path / "slurm").glob("*_log.err"))
