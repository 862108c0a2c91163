"""What a storage or a W&B server names is data: it runs nothing here, leaves no folder, and no password is shown."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from amsd.cli.sweep import app
from amsd.errors import RunError, UsageError
from amsd.recipe.catalog import folder
from amsd.sweep import optuna_access as names
from amsd.sweep.checks import require_inputs
from amsd.sweep.jobs import Stop
from amsd.sweep.load import code_in, load_plan
from amsd.sweep.results import load_sweep
from amsd.sweep.schema import SweepPlan
from amsd.sweep.storage import default_url, sqlite_path
from amsd.sweep.study import PLAN_FILE, Consent, create, join, locate
from amsd.sweep.wandb_backend import run_trial
from amsd.sweep.worker import Worker
from amsd.urls import printable, scrubbed
from tests.sweep.conftest import FAKE_TRAINER, MakePlan
from tests.sweep.formula import Formula

COMMAND = [sys.executable, str(FAKE_TRAINER)]


def poisoned(folder: Path, url: str, change: dict[str, object]) -> None:
    """Somebody with access to the database changes the sweep that lies there."""
    study = locate(url).study
    plan = study.user_attrs[names.PLAN]
    for key, value in change.items():
        plan["sweep"][key] = value
    study.set_user_attr(names.PLAN, plan)


def test_a_worker_runs_no_command_that_only_the_storage_names(make_plan: MakePlan, tmp_path: Path) -> None:
    url = default_url(tmp_path / "sweep")
    create(make_plan(), tmp_path / "sweep")
    own = tmp_path / "own"
    with pytest.raises(UsageError, match="names a command for its trials") as caught:
        join(url, directory=own)
    assert "--directory" in str(caught.value)
    assert "--command" in str(caught.value)
    assert not own.exists()
    # The plan in the sweep's folder, a sweep file or the command line name it.
    assert join(url, directory=tmp_path / "sweep").plan.sweep.execution.command == tuple(COMMAND)
    assert join(url, directory=own, consent=Consent(command=("mine",))).plan.sweep.execution.command == ("mine",)
    assert join(str(tmp_path / "sweep")).plan.sweep.execution.command == tuple(COMMAND)


def test_a_command_that_was_changed_in_the_storage_is_not_the_one_that_runs(
    make_plan: MakePlan, tmp_path: Path
) -> None:
    create(make_plan(), tmp_path)
    evil = {"command": ["sh", "-c", f"touch {tmp_path}/pwned"], "poll_seconds": 0.05}
    poisoned(tmp_path, default_url(tmp_path), {"execution": evil})
    assert join(str(tmp_path)).plan.sweep.execution.command == tuple(COMMAND)
    done = CliRunner().invoke(app, ["worker", "--storage", default_url(tmp_path), "--directory", str(tmp_path / "new")])
    assert isinstance(done.exception, UsageError)
    assert not (tmp_path / "pwned").exists()


def test_code_that_only_the_storage_names_needs_the_users_word(make_plan: MakePlan, tmp_path: Path) -> None:
    url = default_url(tmp_path / "sweep")
    create(make_plan(execution={"command": None}), tmp_path / "sweep")
    own = tmp_path / "own"
    join(url, directory=own)  # nothing in it runs code
    variants = {"variants": {"a": {"reward": [{"name": "python:evil.py:f"}]}}}
    change = {"search": {"mode": variants}, "objective": [{"metric": "train/kl"}]}
    poisoned(tmp_path, url, change)
    with pytest.raises(UsageError, match=r"names code for its trials \(.*python:evil\.py:f\)"):
        join(url, directory=own)
    with pytest.raises(UsageError, match="'search' differs"):  # nor does it pass as the sweep of the trusted folder
        join(url, directory=tmp_path / "sweep")
    assert join(url, directory=own, consent=Consent(allow_code=True)).plan.sweep.search.keys() == {"mode"}


def test_code_is_found_wherever_it_stands() -> None:
    tree = {"reward": [{"name": "python:a:f", "options": {"trust_pickle": True}}], "x": {"choices": ["python:b:g"]},
            "reward.options.trust_pickle": {"choices": [True]}, "description": "about python: code"}  # fmt: skip
    found = sorted(text.rpartition(" = ")[2] for text in code_in(tree))
    assert found == ["python:a:f", "python:b:g", "true", "true"]
    assert code_in({"reward": [{"name": "shapes:right", "options": {"trust_pickle": False}}]}) == []
    served = {"reward.name": {"choices": ["https://host/score"]}, "description": "https://host/about"}
    assert code_in({"search": served}) == ["search.reward.name.choices[0] = https://host/score"]


def test_a_worker_writes_to_no_folder_that_only_the_storage_names(make_plan: MakePlan, tmp_path: Path) -> None:
    create(make_plan(execution={"command": None}), tmp_path / "sweep")
    url = default_url(tmp_path / "sweep")
    assert join(url).directory == tmp_path / "sweep"  # it is this sweep's folder on this machine
    (tmp_path / "other").mkdir()
    locate(url).study.set_user_attr(names.DIRECTORY, str(tmp_path / "other"))
    with pytest.raises(UsageError, match="not this sweep's folder on this machine"):
        join(url)


def test_values_that_the_search_does_not_have_are_not_run(make_plan: MakePlan, tmp_path: Path) -> None:
    handle = create(make_plan(budget={"trials": 2}), tmp_path)
    handle.study.enqueue_trial({"schedule.eta": 99.0})
    executor = Formula()
    Worker(handle, executor).run()
    first = load_sweep(tmp_path).trials[0]
    assert first.state == "failed"
    assert "schedule.eta: 99.0 must be of type number, from 0.5 to 1.5" in (first.error or "")
    assert all(0.5 <= job.recipe.schedule.eta <= 1.5 for job in executor.ran)


def test_runs_outside_the_folder_are_not_read(make_plan: MakePlan, tmp_path: Path) -> None:
    handle = create(make_plan(budget={"trials": 1}), tmp_path)
    trial = handle.study.ask()
    trial.set_user_attr(names.RUNS, [{"seed": 0, "identity": "x", "directory": "../../etc"}])
    with pytest.raises(UsageError, match="outside the sweep's folder"):
        load_sweep(tmp_path)


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "a\\b", "x\n", "", "n" * 101])
def test_names_that_are_no_folder_are_refused(make_plan: MakePlan, name: str) -> None:
    from amsd.recipe import RecipeError

    with pytest.raises(RecipeError, match="name"):
        make_plan(name=name)


# --- W&B ------------------------------------------------------------------------------------------------------------


def given(folder: Path, run_id: str = "run1", **values: object) -> dict[str, str]:
    file = folder / "point.yaml"
    file.write_text(yaml.safe_dump({key.replace("__", "."): {"value": value} for key, value in values.items()}))
    return {"WANDB_RUN_ID": run_id, "WANDB_SWEEP_PARAM_PATH": str(file)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schedule__eta": 99.0}, "99.0 must be of type number, from 0.5 to 1.5"),
        ({"schedule__eta": True}, "True must be of type number"),
        ({"schedule__eta": float("nan")}, "nan must be of type number"),
        ({"schedule__eta": "python:evil:f"}, "must be of type number"),
        ({"schedule__eta": 1.0, "reward": [{"name": "python:evil:f"}]}, "chose reward, which sweep small does not"),
        ({"schedule__eta": 1.0, "training__seed": 7}, r"the sweep's seeds are \[0\]"),
    ],
)
def test_what_wandb_chooses_is_checked(
    make_plan: MakePlan, tmp_path: Path, values: dict[str, object], message: str
) -> None:
    executor = Formula()
    with pytest.raises(RunError, match=message):
        run_trial(make_plan(), tmp_path, executor, Stop(), given(tmp_path, **values))
    assert executor.ran == []


@pytest.mark.parametrize("run_id", ["../../evil", "a/b", "/abs", "..", ""])
def test_run_ids_stay_in_the_folder(make_plan: MakePlan, tmp_path: Path, run_id: str) -> None:
    with pytest.raises(RunError, match="W&B names the run"):
        run_trial(make_plan(), tmp_path, Formula(), Stop(), given(tmp_path, run_id, schedule__eta=1.0))


# --- Formats --------------------------------------------------------------------------------------------------------


def test_a_newer_format_is_refused_in_words(make_plan: MakePlan, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="format 2, but this amsd reads format 1"):
        make_plan(format=2)
    create(make_plan(), tmp_path)
    assert json.loads((tmp_path / PLAN_FILE).read_text())["format"] == 1
    plan = json.loads((tmp_path / PLAN_FILE).read_text())
    (tmp_path / PLAN_FILE).write_text(json.dumps({**plan, "format": 2}))
    with pytest.raises(UsageError, match=r"plan\.json: has format 2"):
        join(str(tmp_path))
    for damage in ("", "[]", "{}", '{"sweep": 3, "recipe": 4}', "\x00"):
        (tmp_path / PLAN_FILE).write_text(damage)
        with pytest.raises(UsageError, match=r"plan\.json"):
            join(str(tmp_path))


def test_a_sweep_from_before_plans_had_a_format_goes_on_as_it_did(make_plan: MakePlan, tmp_path: Path) -> None:
    def threshold(plan: SweepPlan) -> str:
        return str(plan.resolve({"schedule.eta": 1.0}).method.model_dump()["outlier_threshold"])

    handle = create(make_plan(), tmp_path)
    assert threshold(handle.plan) == "previous"
    before = {key: value for key, value in handle.plan.dump().items() if key != "format"}
    handle.study.set_user_attr(names.PLAN, before)
    (tmp_path / PLAN_FILE).write_text(json.dumps(before))
    for again in (join(str(tmp_path)), create(make_plan(), tmp_path), join(str(tmp_path))):
        assert threshold(again.plan) == "current"
    with pytest.raises(UsageError, match="recipe"):
        create(make_plan(recipe="shapes-buffer"), tmp_path)


# --- Passwords ------------------------------------------------------------------------------------------------------

SECRET = "hunter2"
URLS = [
    f"postgresql://me:{SECRET}@127.0.0.1:1/db",
    f"postgresql://me:{SECRET}@127.0.0.1:port/db",
    f"postgresql://me:a@{SECRET}@127.0.0.1:1/db",
    f"postgresql://me:a/{SECRET}@127.0.0.1:1/db",
    f"postgresql://me:a?{SECRET}@127.0.0.1:1/db",
    f"postgresql://me:a#{SECRET}@127.0.0.1:1/db",
    f"postgresql://me:{SECRET}%zz@127.0.0.1:1/db",
    f"postgresql://:{SECRET}@127.0.0.1:1/db",
    f"postgresql://me:{SECRET}",
    f"postgresql://me:{SECRET}/db",
    f"postgresql:me:{SECRET}@127.0.0.1:1/db",
    f"postgresql:/me:{SECRET}@127.0.0.1:1/db",
    f"postgresql//me:{SECRET}@127.0.0.1:1/db",
    f"postgresql+nothing://me:{SECRET}@127.0.0.1:1/db",
    f"postgres://me:{SECRET}@127.0.0.1:1/db",
    f"postgresql://127.0.0.1:1/db?user=me&password={SECRET}",
    f"postgresql://127.0.0.1:1/db?password={SECRET}&connect_timeout=1",
    f"postgresql://127.0.0.1:1/db?PassWord={SECRET}",
    f"postgresql://127.0.0.1:1/db?%70assword={SECRET}",
    f"postgresql://127.0.0.1:1/db?password=a&{SECRET}",
    f"postgresql://127.0.0.1:1/db?sslpassword={SECRET}",
    f"postgresql://127.0.0.1:1/db&password={SECRET}",
    f"mysql://me:{SECRET}@127.0.0.1/db",
    f"me:{SECRET}@127.0.0.1/db",
    f"me:{SECRET}",
    f"redis://me:{SECRET}",
    f"grpc://me:{SECRET}@127.0.0.1:1",
    f"grpc://127.0.0.1:{SECRET}",
    f"sqlite://me:{SECRET}@127.0.0.1/db",
    f"journal://me:{SECRET}@127.0.0.1/db",
]


@pytest.mark.parametrize("url", URLS)
def test_no_message_and_no_file_has_a_password(
    make_plan: MakePlan, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("amsd.sweep.storage.PROXY_SECONDS", 0.5)
    said = [printable(url)]
    for attempt in (lambda: create(make_plan(), tmp_path / "out", url), lambda: join(url), lambda: load_sweep(url)):
        try:
            attempt()
        except UsageError as error:
            said.append(str(error))
    if "journal" not in url:
        assert len(said) == 4, said
    written = [str(path) + path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    assert SECRET not in "\n".join([*said, caplog.text, *(text for text in written if "journal" not in url)])


def test_harmless_urls_are_shown_as_they_are() -> None:
    for url in ("postgresql://me@host:5432/db?sslmode=require", "sqlite:////data/a@b:c/what?/100%/study.db", "x.db",
                "journal:/tmp/a@b.log", "journal:///tmp/a:b@c.log", "grpc://host:13000", "grpc://[::1]:13000",
                "postgresql://h1,h2/db"):  # fmt: skip
        assert printable(url) == url
    assert printable("postgresql://me:secret@host/db") == "postgresql://me@host/db"
    assert (
        printable("postgresql://host/db?sslmode=require&password=x&a=b") == "postgresql://host/db?sslmode=require&a=b"
    )
    assert (
        scrubbed("no user me with s%cret or secret!", "postgresql://me:secret!@h/db") == "no user me with s%cret or ***"
    )


@pytest.mark.parametrize("name", ["what?", "100%", "a=b?c", "with space", "ä#$x", "100%41"])
def test_a_sweep_may_lie_under_any_name(make_plan: MakePlan, tmp_path: Path, name: str) -> None:
    place = tmp_path / name
    Worker(create(make_plan(budget={"trials": 1}), place), Formula()).run()
    assert (place / "study.db").is_file()
    assert [trial.state for trial in load_sweep(place).trials] == ["complete"]
    assert sqlite_path(default_url(place))[0] == place / "study.db"
    place.rename(tmp_path / "moved")
    assert load_sweep(tmp_path / "moved").directory == tmp_path / "moved"


def test_sqlite_options_are_still_options() -> None:
    assert sqlite_path("sqlite:///x.db?timeout=5&cache=shared") == (Path("x.db"), "timeout=5&cache=shared")
    assert sqlite_path("sqlite:////a?b=c/x.db") == (Path("/a?b=c/x.db"), "")


# --- Before the first trial -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"prompts.train": "'absent.txt'"}, "absent.txt"),
        ({"model.pretrained": "'./no-model'"}, "no-model"),
        ({"reward": "[{ name = 'nothing:here' }]"}, "nothing:here"),
    ],
)
@pytest.mark.parametrize("extra", [[], ["--dry-run"]])
def test_missing_inputs_are_said_before_the_first_trial(
    tmp_path: Path, override: dict[str, str], message: str, extra: list[str]
) -> None:
    lines = [f'"{key}" = {value}' for key, value in override.items()]
    file = tmp_path / "s.toml"
    metric = "train/kl" if "reward" in override else "shapes:right"
    file.write_text(
        f'recipe = "shapes"\nbudget.trials = 2\n[override]\n{chr(10).join(lines)}\n'
        f'[search]\nschedule.eta = {{ choices = [0.9, 1.0] }}\n[[objective]]\nmetric = "{metric}"\n'
    )
    done = CliRunner().invoke(app, ["run", str(file), "--output", str(tmp_path / "out"), *extra])
    assert isinstance(done.exception, UsageError), done.output
    assert message in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_prompt_files_lie_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a red circle\na blue square\n")
    text = (folder("recipes") / "shapes.toml").read_text() + '\n[prompts]\ntrain = "mine.txt"\n'
    (tmp_path / "r.toml").write_text(text)
    (tmp_path / "s.toml").write_text(
        'recipe = "r.toml"\nbudget.trials = 1\n[search]\nschedule.eta = { choices = [1.0] }\n'
        '[[objective]]\nmetric = "shapes:right"\n'
    )
    plan = load_plan(tmp_path / "s.toml")
    assert plan.recipe.prompts.train == str(tmp_path / "mine.txt")
    require_inputs(plan)


def test_shipped_sweeps_are_listed_with_what_they_ask() -> None:
    done = CliRunner().invoke(app, ["list"])
    assert done.exit_code == 0
    line = next(line for line in done.output.splitlines() if line.startswith("lambda-pareto "))
    assert line.endswith(load_plan("lambda-pareto").sweep.description)
