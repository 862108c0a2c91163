"""Signals become wishes: now, after the step, or after what must not be torn."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amsd.ends import AnnouncedEnd, Ends, announced, keeping
from amsd.experiment.train import train
from amsd.run_directory import RunDirectory
from tests.experiment.test_train import BUFFER, lines, merged


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP])
def test_codes(number: signal.Signals) -> None:
    with pytest.raises(AnnouncedEnd) as end, Ends(alone=True):
        send(number)
    assert end.value.exit_code == (130 if number == signal.SIGINT else 75)
    assert end.value.signal_name == number.name


def test_a_step_finishes_after_one_signal_and_is_dropped_after_two() -> None:
    with Ends(alone=True) as ends:
        with ends.finishing():
            send()
        assert ends.number == signal.SIGTERM
        with pytest.raises(AnnouncedEnd), ends.finishing():
            send()
    with Ends(alone=True) as ends, ends.finishing():
        send()
        ends.hold()
        send()
    with Ends(alone=False) as ends, ends.finishing():  # the others would wait for this process
        send()
        send()


def test_what_is_held_is_not_torn() -> None:
    with Ends(alone=True) as ends:
        with ends.held():
            send()
            send(signal.SIGINT)
        assert ends.number == signal.SIGTERM


def test_a_signal_that_comes_twice_at_once_is_one_wish() -> None:
    """Launchers tell a process and its group; what is half written must be deleted meanwhile."""
    cleaned = []

    def work() -> None:
        try:
            send()
        finally:
            send(signal.SIGINT)
            cleaned.append(True)

    with pytest.raises(AnnouncedEnd) as end, Ends(alone=True):
        work()
    assert end.value.number == signal.SIGTERM
    assert cleaned


def test_a_fork_is_ended_by_a_signal_as_if_nobody_listened() -> None:
    """Such as a worker of the pool of somebody's reward, which the pool ends with SIGTERM."""
    fork = multiprocessing.get_context("fork")
    up = fork.Event()

    def work() -> None:
        up.set()
        while True:
            time.sleep(0.01)

    with Ends(alone=True) as ends:
        child = fork.Process(target=work)
        child.start()
        up.wait()
        child.terminate()
        child.join()
    assert child.exitcode == -signal.SIGTERM
    assert ends.number is None


def test_an_end_says_what_is_kept_and_is_found_behind_other_errors() -> None:

    def command() -> None:
        try:
            with keeping(lambda: "outer"), keeping(lambda: "inner"):
                raise AnnouncedEnd(signal.SIGHUP)
        except KeyboardInterrupt as error:  # as Typer ends a command
            raise SystemExit(130) from error

    with pytest.raises(SystemExit) as ended, keeping(lambda: "no end"):
        command()
    end = announced(ended.value)
    assert end is not None
    assert (end.kept, end.exit_code, end.signal_name) == ("inner", 75, "SIGHUP")
    assert announced(SystemExit(1)) is None


def test_ignored_signals_stay_ignored_and_handlers_come_back() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Ends(alone=True) as ends:
            send(signal.SIGHUP)
        assert ends.number is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
    thread = threading.Thread(target=lambda: Ends().__enter__())
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.slow
@pytest.mark.parametrize(("at", "kept"), [("collect", 2), ("match", 3), ("step", 4)])
def test_a_dropped_step_is_made_again_alike(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, kept: int
) -> None:
    """Two signals in a step of a buffered run: while it collects, in the loss, and in the update (which is kept)."""
    from amsd.training import update
    from amsd.training.methods.adjoint_matching import AMTrainer

    changes = {**BUFFER, "training": {"steps": 6, "checkpoint_every": 3, "keep": 9}, "evaluation": {"every": 0}}
    changes["optimizer"] = {"prompts_per_step": 4}
    changes["method"] = {"name": "buffer-am", "timesteps_per_trajectory": 1, "buffer": {"size": 4, "passes": 2}}
    chosen = merged(model, changes)
    train(chosen, tmp_path / "whole", resume=False)

    def twice(original: Callable[..., Any], call: int) -> Callable[..., Any]:
        count = [0]

        def called(*given: Any, **named: Any) -> Any:
            count[0] += 1
            if count[0] == call:
                send()
                send()
            return original(*given, **named)

        return called

    with monkeypatch.context() as patch:
        if at == "collect":  # the second collection belongs to step 3
            patch.setattr(AMTrainer, "compute_experience", twice(AMTrainer.compute_experience, 2))
        elif at == "match":
            patch.setattr(AMTrainer, "match", twice(AMTrainer.match, 4))
        else:
            patch.setattr(update, "take_step", twice(update.take_step, 4))
        with pytest.raises(AnnouncedEnd):
            train(chosen, tmp_path / "run", resume=False)
    run = RunDirectory(tmp_path / "run")
    assert run.steps()[-1] == kept
    train(chosen, run.path, resume=True)
    assert lines(run.path) == lines(tmp_path / "whole")
    assert run.steps() == [3, 6]
