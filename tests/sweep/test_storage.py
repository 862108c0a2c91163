"""Patience with a server that is away, and URLs."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState
from typer.testing import CliRunner

from amsd.cli.app import app
from amsd.errors import RunError, UsageError
from amsd.sweep.storage import default_url, open_storage, patient
from amsd.sweep.study import create, join, locate
from amsd.sweep.worker import Worker
from benchmarks.fault_parts.damaging import damage_file
from tests.sweep.conftest import MakePlan
from tests.sweep.formula import Formula


class Away(InMemoryStorage):
    """Does what it is asked to, but the answer of the next `failures` calls that finish a trial is lost."""

    failures = 0

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: object = None) -> bool:
        done = super().set_trial_state_values(trial_id, state, values)  # type: ignore[arg-type]
        if self.failures:
            self.failures -= 1
            raise StorageInternalError("the connection is gone")
        return done


def test_a_lost_answer_is_no_lost_trial() -> None:
    away = Away()
    storage = patient(away, patience=5)
    study = storage.create_new_study([StudyDirection.MAXIMIZE], "s")
    trial = storage.create_new_trial(study)
    away.failures = 1
    assert storage.set_trial_state_values(trial, TrialState.COMPLETE, [1.0])
    assert storage.get_trial(trial).values == [1.0]
    with pytest.raises(UpdateFinishedTrialError):  # without an outage this stays an error
        storage.set_trial_state_values(trial, TrialState.FAIL)


def test_patience_ends() -> None:
    away = Away()
    storage = patient(away, patience=0.5)
    trial = storage.create_new_trial(storage.create_new_study([StudyDirection.MAXIMIZE], "s"))
    away.failures = 1000
    with pytest.raises(RunError, match=r"did not answer for 0\.5 s: the connection is gone"):
        storage.set_trial_state_values(trial, TrialState.WAITING)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://x/y", "is not a storage"),
        ("grpc://host", "grpc://HOST:PORT"),
        ("sqlite:///:memory:", "no worker could join it"),
        ("journal:", "is no file"),
        ("journal:/dev/null", "is no file"),  # of a device such as /dev/zero all memory would be read
        ("postgresql://nobody@127.0.0.1:1/none", "cannot be opened"),
    ],
)
def test_what_is_no_storage_is_said(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_storage(url)


def test_places_without_a_sweep_are_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a sweep's folder"):
        locate(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="no sweep there"):
        locate(default_url(tmp_path))


@pytest.mark.parametrize("form", ["journal:{folder}/j?x%20#é.log", "sqlite:///{folder}/s %25#é.db"])
def test_names_with_special_characters_are_files_of_that_name(make_plan: MakePlan, tmp_path: Path, form: str) -> None:
    url = form.format(folder=tmp_path)
    handle = create(make_plan(), tmp_path / "sweep", url)
    assert Path(url.removeprefix("journal:").removeprefix("sqlite://")).is_file()
    assert join(handle.url, handle.study.study_name, tmp_path / "sweep").study.study_name == "small"


@pytest.mark.parametrize("kind", ["truncated", "emptied", "another type", "folder", "deleted"])
def test_a_damaged_file_of_a_sweep_is_named_or_not_needed(make_plan: MakePlan, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "sweep"
    Worker(create(make_plan(), folder), Formula()).run()
    shutil.copytree(folder, tmp_path / "whole")
    for file in sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()):
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "whole", folder)
        damage_file(folder / file, kind)
        for command in (["sweep", "show"], ["report"]):
            done = CliRunner().invoke(app, [*command, str(folder)])
            if done.exit_code:
                assert isinstance(done.exception, UsageError), (file, command, done.exception)
                assert file.name in str(done.exception), (file, command)


def test_a_folder_holds_one_sweep(make_plan: MakePlan, tmp_path: Path) -> None:
    create(make_plan(name="one"), tmp_path)
    with pytest.raises(UsageError, match=r"holds the sweep 'one', .* is called 'two' .*--set name=one"):
        create(make_plan(name="two"), tmp_path)
    assert locate(str(tmp_path)).plan is not None
    assert locate(str(tmp_path)).study.study_name == "one"
    create(make_plan(name="one"), tmp_path)


def test_a_database_without_its_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)  # as if it were not installed
    with pytest.raises(UsageError, match=r"needs the package psycopg.*uv pip install 'amsd\[postgresql\]'"):
        open_storage("postgresql://amsd@127.0.0.1:1/amsd")
