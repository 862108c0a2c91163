"""The machinery in one process, with an executor that computes a closed form: nothing lost, nothing run twice."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from amsd.cli.app import app
from amsd.errors import RunError, UsageError
from amsd.sweep import optuna_access as names
from amsd.sweep.claims import Liveness
from amsd.sweep.jobs import Ended, Job, Monitor, RunLog, Stop, exit_code, on_signals
from amsd.sweep.results import load_sweep, results_of
from amsd.sweep.study import StudyHandle, create, locate
from amsd.sweep.worker import Worker
from tests.sweep.conftest import MakePlan
from tests.sweep.formula import Formula
from tests.waiting import until


@dataclass
class Failing:
    message: str

    def run(self, job: Job, monitor: Monitor) -> Ended:
        return Ended("failed", RunLog(), self.message.format(directory=job.directory))


def test_values_are_means_over_seeds(make_plan: MakePlan, tmp_path: Path) -> None:
    executor = Formula()
    Worker(create(make_plan(seeds=[0, 1]), tmp_path), executor).run()
    results = load_sweep(tmp_path)
    assert [trial.state for trial in results.trials] == ["complete"] * 3
    assert len(executor.ran) == 6
    for trial in results.trials:
        expected = -((trial.params["schedule.eta"] - 0.8) ** 2) + 0.25
        assert trial.values == pytest.approx((expected,))
        assert [run.values["shapes:right"] for run in trial.runs] == pytest.approx([expected - 0.25, expected + 0.25])
        assert trial.seeds == (0, 1)
        # Half the value at half of the first seed's steps; then the mean of the finished and the running seed.
        assert list(trial.intermediate) == [2, 4, 6, 8]
        assert trial.intermediate[2] == pytest.approx((expected - 0.25) / 2)
        assert trial.intermediate[8] == pytest.approx(expected)
    best = results.best
    assert best is not None
    assert abs(best.params["schedule.eta"] - 0.8) == min(abs(t.params["schedule.eta"] - 0.8) for t in results.trials)


@pytest.mark.parametrize("url", ["sqlite:///{}/s.db", "journal:{}/s.log"])
def test_a_resumed_sweep_adds_nothing_and_a_larger_budget_adds_the_rest(
    make_plan: MakePlan, tmp_path: Path, url: str
) -> None:
    url = url.format(tmp_path)
    for trials, new in ((3, 3), (3, 0), (5, 2)):
        executor = Formula()
        Worker(create(make_plan(budget={"trials": trials}), tmp_path, url), executor).run()
        assert len(executor.ran) == new
    assert len(load_sweep(url).trials) == 5
    with pytest.raises(UsageError, match="'search' differs"):
        create(make_plan(search={"schedule.eta": {"low": 0.5, "high": 1.4}}), tmp_path, url)


def test_another_sampler_takes_over_with_a_word_but_a_grid_stays_a_grid(
    make_plan: MakePlan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    create(make_plan(), tmp_path)
    create(make_plan(), tmp_path)
    assert caplog.text == ""
    create(make_plan(sampler={"name": "qmc"}, pruner={"name": "median"}), tmp_path)
    assert "goes on with another sampler: name = qmc (it was 'random')" in caplog.text
    assert "goes on with another pruner: name = median (it was 'none')" in caplog.text
    with pytest.raises(UsageError, match="cannot go on with 'grid'"):
        create(make_plan(sampler={"name": "grid"}), tmp_path)
    with pytest.raises(UsageError, match="'first' differs"):
        create(make_plan(first=[{"schedule.eta": 1.0}]), tmp_path)


def test_times_are_those_of_one_clock_wherever_a_worker_is(make_plan: MakePlan, tmp_path: Path) -> None:
    Worker(create(make_plan(budget={"trials": 1}), tmp_path), Formula()).run()
    started = load_sweep(tmp_path).trials[0].started
    assert started is not None
    assert started.tzinfo is UTC
    assert abs((datetime.now(UTC) - started).total_seconds()) < 60


def test_equal_runs_are_run_once(make_plan: MakePlan, tmp_path: Path) -> None:
    flags = {"choices": [False, True]}
    plan = make_plan(
        search={"guidance.guidance_scale": {"choices": [1.0, 5.0]}, "guidance.guidance_in_adjoint_computation": flags},
        sampler={"name": "grid"}, budget={},
    )  # fmt: skip
    executor = Formula()
    Worker(create(plan, tmp_path), executor).run()
    results = load_sweep(tmp_path)
    assert [trial.state for trial in results.trials] == ["complete"] * 4
    assert len(executor.ran) == 3
    assert [trial.copy_of for trial in results.trials] == [None, 0, None, None]
    assert results.trials[1].values == results.trials[0].values
    assert results.trials[1].runs == results.trials[0].runs
    assert results.trials[1].number not in {trial.number for trial in results.pareto}


def test_threads_of_one_process_start_each_trial_once(make_plan: MakePlan, tmp_path: Path) -> None:
    """Workers of a Ray driver share one study: eight of them fall upon twenty waiting trials at once."""
    plan = make_plan(budget={"trials": 20}, execution={"poll_seconds": 0.01})
    handle = create(plan, tmp_path)
    for number in range(20):
        handle.study.enqueue_trial({"schedule.eta": 0.6 + 0.04 * number})
    executors = [Formula() for _ in range(8)]
    workers = [Worker(handle, executor, name=f"{n}", alone=True) for n, executor in enumerate(executors)]
    threads = [threading.Thread(target=worker.run) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    ran = [job.directory.parent.name[:4] for executor in executors for job in executor.ran]
    assert sorted(ran) == [f"{number:04d}" for number in range(20)]
    assert [trial.attempts for trial in load_sweep(tmp_path).trials] == [1] * 20


def test_parallel_twins_run_once(make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan(
        search={"schedule.eta": {"choices": [0.7]}}, budget={"trials": 4}, execution={"poll_seconds": 0.02}
    )
    create(plan, tmp_path)
    executors = [Formula(seconds=0.1) for _ in range(4)]
    handles = [locate(str(tmp_path)) for _ in executors]
    threads = [
        threading.Thread(target=Worker(handle, executor).run)
        for handle, executor in zip(handles, executors, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    results = load_sweep(tmp_path)
    assert [trial.state for trial in results.trials] == ["complete"] * 4
    assert sum(len(executor.ran) for executor in executors) == 1
    assert sum(trial.copy_of is not None for trial in results.trials) == 3


@pytest.mark.parametrize("role", ["objective", "constraint"])
def test_a_run_without_the_wanted_fid_fails_at_its_first_checkpoint(
    make_plan: MakePlan, tmp_path: Path, role: str
) -> None:
    """The evaluator leaves FID out where there are too few images; the formula never has one."""
    wanted = {"metric": "fid/shapes:classifier"}
    right = {"metric": "shapes:right"}
    named = (
        {"objective": [{**wanted, "direction": "minimize"}, right]}
        if role == "objective"
        else {"objective": [right], "constraint": [{**wanted, "at_most": 1.0}]}
    )
    plan = make_plan(override={"training.steps": 4, "evaluation.distance": ["shapes:classifier"]}, **named)
    executor = Formula()
    with pytest.raises(RunError, match="all failed alike"):
        Worker(create(plan, tmp_path), executor).run()
    assert executor.ends == []  # the second evaluation was never reached
    assert len(executor.ran) == 3
    error = load_sweep(tmp_path).trials[0].error
    assert error is not None
    assert "the evaluation of step 2 in metrics.jsonl has no 'eval/fid/shapes:classifier': FID is left out" in error
    assert "evaluation.samples_per_prompt" in error


def test_pruner_ends_a_bad_trial(make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan(
        search={"schedule.eta": {"choices": [0.8, 0.9, 1.0, 1.5]}}, sampler={"name": "grid"}, budget={},
        pruner={"name": "median", "startup_trials": 3},
    )  # fmt: skip
    executor = Formula()
    Worker(create(plan, tmp_path), executor).run()
    results = load_sweep(tmp_path)
    assert [trial.state for trial in results.trials] == ["complete"] * 3 + ["pruned"]
    assert executor.ends == ["prune"]
    assert list(results.trials[3].intermediate) == [2]


def test_several_objectives_constraint_and_pareto_front(make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan(
        search={"schedule.eta": {"choices": [0.5, 0.8, 1.1, 1.4]}}, sampler={"name": "grid"}, budget={},
        objective=[{"metric": "shapes:right"}, {"metric": "shapes:alignment"}],
        constraint=[{"metric": "train/kl", "at_most": 2.5}],
    )  # fmt: skip
    Worker(create(plan, tmp_path), Formula()).run()
    results = load_sweep(tmp_path)
    # kl = 2 eta: 1.4 breaks the budget; 0.5 is worse than 0.8 in both; 1.1 trades one for the other.
    assert [trial.feasible for trial in results.trials] == [True, True, True, False]
    assert [trial.number for trial in results.pareto] == [1, 2]
    assert results.best is not None
    assert results.best.number == 1
    frozen = create(plan, tmp_path).study.get_trials()[3]
    assert frozen.constraints == {"train/kl": pytest.approx(0.3)}


def test_a_failed_trial_keeps_its_error_and_the_sweep_goes_on(make_plan: MakePlan, tmp_path: Path) -> None:
    def value(job: Job) -> float:
        return float("nan") if job.recipe.schedule.eta > 0.9 else 1.0

    plan = make_plan(
        search={"schedule.eta": {"choices": [0.8, 1.0, 0.9]}}, sampler={"name": "grid"}, budget={},
    )  # fmt: skip
    Worker(create(plan, tmp_path), Formula(value)).run()
    results = load_sweep(tmp_path)
    assert [trial.state for trial in results.trials] == ["complete", "failed", "complete"]
    assert results.trials[1].error == "shapes:right is nan"


def test_the_sweep_stops_when_the_first_trials_fail_alike(make_plan: MakePlan, tmp_path: Path) -> None:
    handle = create(make_plan(budget={"trials": 8}), tmp_path)
    with pytest.raises(RunError, match=r"(?s)first 3 trials all failed alike.*no weights in"):
        Worker(handle, Failing("no weights in {directory}")).run()
    results = results_of(handle)
    assert [trial.state for trial in results.trials] == ["failed"] * 3
    # Started again after the cause was removed, it goes on.
    Worker(create(make_plan(budget={"trials": 8}), tmp_path), Formula()).run()
    assert [trial.state for trial in load_sweep(tmp_path).trials] == ["failed"] * 3 + ["complete"] * 5


def test_a_stop_hands_the_trial_back(make_plan: MakePlan, tmp_path: Path) -> None:
    handle, stop = create(make_plan(), tmp_path), Stop()
    executor = Formula(begun=lambda: stop.request())
    report = Worker(handle, executor, stop).run()
    assert report.interrupted
    states = [trial.state for trial in results_of(handle).trials]
    assert "running" not in states
    assert states.count("queued") == 1
    Worker(handle, Formula()).run()
    assert [trial.state for trial in results_of(handle).trials] == ["complete"] * 3


def silent_owner(handle: StudyHandle) -> int:
    """Claim a trial and fall silent at once, as a killed worker does."""
    trial = handle.study.ask()
    return Liveness(handle, "gone:1").own(handle.trials.id_of(trial), trial.number, {}).number


@pytest.mark.parametrize("url", ["sqlite:///{}/s.db", "journal:{}/s.log"])
def test_a_lost_trial_is_queued_again_under_its_number(make_plan: MakePlan, tmp_path: Path, url: str) -> None:
    handle = create(make_plan(), tmp_path, url.format(tmp_path))
    number = silent_owner(handle)
    Worker(handle, Formula()).run()
    results = results_of(handle)
    assert [trial.state for trial in results.trials] == ["complete"] * 3
    assert results.trials[number].attempts == 2


def test_a_trial_that_loses_every_worker_fails(make_plan: MakePlan, tmp_path: Path) -> None:
    handle = create(make_plan(execution={"attempts": 1}), tmp_path)
    number = silent_owner(handle)
    Worker(handle, Formula()).run()
    lost = results_of(handle).trials[number]
    assert lost.state == "failed"
    assert "lost 1 times, last gone:1" in (lost.error or "")


def test_an_owner_that_was_taken_for_dead_lets_go(make_plan: MakePlan, tmp_path: Path) -> None:
    handle = create(make_plan(budget={"trials": 1}), tmp_path)

    def give_to_another() -> None:
        trial = handle.study.get_trials()[0]
        handle.trials.note(handle.trials.id_of(trial), names.OWNER, {"token": "another", "attempt": 2})
        until(lambda: worker._liveness.fenced)

    executor = Formula(begun=give_to_another)
    worker = Worker(handle, executor)
    thread = threading.Thread(target=worker.run)
    thread.start()
    until(lambda: executor.ends == ["release"])
    assert handle.study.get_trials()[0].state.name == "RUNNING"  # still the other's
    worker._stop.request()
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize("key", ["network_calls", "unet_evaluations"])  # the second is the name of before
def test_budget_in_network_calls(key: str, make_plan: MakePlan, tmp_path: Path) -> None:
    from amsd.recipe.cost import training_cost

    cost = training_cost(make_plan().recipe)
    executor = Formula()
    Worker(create(make_plan(budget={key: 3.5 * cost}), tmp_path), executor).run()
    assert len(executor.ran) == 4  # the budget is checked before a trial starts


def test_a_clock_that_goes_backwards_gives_no_negative_times(
    make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = itertools.count()
    monkeypatch.setattr(time, "time", lambda: 2e9 - 3600.0 * next(hours))
    durations: list[float | None] = []

    def look() -> None:  # one trial is running
        durations.extend(trial.duration for trial in load_sweep(tmp_path).trials)

    Worker(create(make_plan(budget={"trials": 2, "seconds": 100.0}), tmp_path), executor := Formula(begun=look)).run()
    assert len(executor.ran) >= 2
    durations += [trial.duration for trial in load_sweep(tmp_path).trials]
    known = [each for each in durations if each is not None]
    assert len(known) >= 3
    assert 0 <= min(known) <= max(known) < 100


def test_budget_in_seconds(make_plan: MakePlan, tmp_path: Path) -> None:
    """Each trial takes 0.4 s or more, so the budget is used up after the second at the latest."""
    executor = Formula(seconds=0.2)
    Worker(create(make_plan(budget={"seconds": 0.5}), tmp_path), executor).run()
    assert len(executor.ran) in (1, 2)
    spent = sum(trial.duration or 0.0 for trial in load_sweep(tmp_path).trials)
    assert spent >= 0.4 * len(executor.ran)
    Worker(create(make_plan(budget={"seconds": spent}), tmp_path), again := Formula()).run()
    assert again.ran == []
    Worker(create(make_plan(budget={"seconds": spent + 0.01}), tmp_path), again).run()
    assert len(again.ran) >= 1  # a larger budget goes on


def test_the_last_place_of_the_budget_is_given_once(make_plan: MakePlan, tmp_path: Path) -> None:
    """Both workers see a free place and make a trial; the one with the higher number stands back."""
    handle = create(make_plan(budget={"trials": 2}), tmp_path)
    quick, slow = Worker(handle, Formula()), Worker(locate(str(tmp_path)), Formula())
    assert slow._may_add()
    quick.run()
    assert slow._added() is None
    assert len(load_sweep(tmp_path).trials) == 2
    assert not slow._may_add()
    executor = Formula()
    Worker(create(make_plan(budget={"trials": 3}), tmp_path), executor).run()
    assert len(executor.ran) == 1
    assert [trial.state for trial in load_sweep(tmp_path).trials] == ["complete"] * 3


@pytest.mark.slow
def test_workers_join_through_a_grpc_proxy(make_plan: MakePlan, tmp_path: Path) -> None:
    pytest.importorskip("grpc")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = (
        "from optuna.storages import RDBStorage, run_grpc_proxy_server as run; "
        f"run(RDBStorage('sqlite:///{tmp_path}/s.db'), host='127.0.0.1', port={port})"
    )
    proxy = subprocess.Popen([sys.executable, "-c", serve])
    try:
        url = f"grpc://127.0.0.1:{port}"
        handle = create(make_plan(budget={"trials": 6}), tmp_path, url)
        silent_owner(handle)
        workers = [Worker(locate(url, "small"), Formula(seconds=0.05)) for _ in range(2)]
        threads = [threading.Thread(target=worker.run) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert [trial.state for trial in load_sweep(url).trials] == ["complete"] * 6
    finally:
        proxy.kill()
        proxy.wait()


def test_a_worker_that_joins_says_what_it_does(
    make_plan: MakePlan, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    create(make_plan(budget={"trials": 1}), tmp_path)
    log = logging.getLogger("amsd")
    before, handlers = log.level, logging.getLogger().handlers[:]
    try:
        log.setLevel(logging.WARNING)  # as the command line leaves it
        ended = CliRunner().invoke(app, ["sweep", "worker", "--storage", str(tmp_path), "--directory", str(tmp_path)])
    finally:
        log.setLevel(before)
        logging.getLogger().handlers[:] = handlers
        logging.Formatter.converter = time.localtime
    assert ended.exit_code == 0, ended.output
    said = ended.stderr + capfd.readouterr().err
    assert "Trial 0 begins: schedule.eta = " in said
    assert "Trial 0 complete: shapes:right = " in said


@pytest.mark.parametrize(("number", "code"), [
    (signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGUSR2, 75), (signal.SIGHUP, 75),
])  # fmt: skip
def test_every_signal_hands_trials_back_and_has_its_exit_code(number: signal.Signals, code: int) -> None:
    before = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    try:
        stop = Stop()
        with on_signals(stop):
            os.kill(os.getpid(), number)
            until(lambda: stop.requested)
            with pytest.raises(KeyboardInterrupt):  # the second one does not wait
                signal.raise_signal(number)
        assert exit_code() == code
        with on_signals(Stop()):
            assert exit_code() == 130  # of a sweep that nothing has ended yet
    finally:
        signal.signal(number, before)


def test_a_signal_that_somebody_else_listens_to_is_left_alone() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: heard.append(number))
    try:
        stop = Stop()
        with on_signals(stop):  # as in a job of submitit
            os.kill(os.getpid(), signal.SIGUSR2)
            until(lambda: bool(heard))
        assert not stop.requested
    finally:
        signal.signal(signal.SIGUSR2, before)
