"""Rewards without a gradient, from the command line: what is refused and why, and what RAM trains on."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from amsd.cli import main
from amsd.cli.app import app
from amsd.experiment.train import train
from amsd.recipe import load_recipe
from amsd.recipe.load import dump_toml
from tests.rewards.serving import EXAMPLES, example, serving

FEW = ["schedule.num_inference_steps=4", "method.timesteps_per_trajectory=2", "optimizer.prompts_per_step=4",
       "optimizer.micro_batch=4", "training.steps=2", "training.checkpoint_every=2", "evaluation.every=0",
       "tracking.trackers=none"]  # fmt: skip
RAM = [*FEW, "method.name=ram", "method.group_size=2"]
COUNT = f"python:{EXAMPLES / 'shape_count.py'}:shape_count"
NUMBERS = """
import numpy
import torch

def numbers(images, prompts):
    return [float(image.mean()) for image in images]

def array(images, prompts):
    return images.mean((1, 2, 3)).numpy()

def detached(images, prompts):
    return images.detach().mean((1, 2, 3))

def tensors(images, prompts):
    return [image.mean() for image in images]

def alone(images, prompts):
    return images.mean().item()

def whole(images, prompts):
    return (images.mean(0) * images).mean((1, 2, 3))

def ranks(images, prompts):
    assert len(set(prompts)) == 1, prompts
    assert len(images) == 2
    return numpy.argsort(numpy.argsort(images.mean((1, 2, 3)).numpy()))

@torch.no_grad()
def switched(images, prompts):
    return images.mean((1, 2, 3))

def annotated(images: torch.Tensor, prompts: list[str]) -> list[float]:
    raise AssertionError("nothing may be called to know that there is no gradient")

def differentiable(images, prompts) -> torch.Tensor:
    return images.mean((1, 2, 3))
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "scores.py"
    path.write_text(NUMBERS, encoding="utf-8")
    return path


def reward(name: str, **options: Any) -> str:
    given = ", ".join(f"{key} = {json.dumps(value)}" for key, value in options.items())
    return f'reward=[{{name = "{name}", options = {{ {given} }}}}]'


def amsd(
    arguments: Sequence[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Exit code and messages of a command in this process."""
    monkeypatch.setattr(sys, "argv", ["amsd", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0), capsys.readouterr().err


def settings(*assignments: str) -> list[str]:
    return [part for assignment in assignments for part in ("--set", assignment)]


@pytest.mark.parametrize("name", ["shapes:accuracy", "http://127.0.0.1:9/", "pyiqa:piqe", COUNT,
                                  "python:FILE:annotated", "python:FILE:switched"])  # fmt: skip
def test_a_method_that_needs_a_gradient_refuses_what_has_none(
    name: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = name.replace("FILE", str(file))
    out = tmp_path / "run"
    commands = (
        ["recipe", "check", "shapes"],
        ["train", "shapes", "--dry-run", "-o", out],
        ["train", "shapes", "-o", out],
    )
    for command in commands:
        code, said = amsd([*command, *settings(reward(name), *FEW)], monkeypatch, capsys)
        assert code == 2, said
        assert "method.name = 'am' needs the gradient of the reward" in said
        assert f"{name!r} has none" in said
        assert 'method.name = "ram"' in said
    assert not out.exists()
    code, said = amsd(["recipe", "check", "shapes", *settings(reward(name), *RAM)], monkeypatch, capsys)
    assert code == 0, said


@pytest.mark.parametrize("function", ["numbers", "array", "detached"])
def test_what_only_the_code_knows_is_refused_when_it_is_tried(
    function: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"python:{file}:{function}"
    code, said = amsd(["train", "shapes", "-o", tmp_path / "run", *settings(reward(name), *FEW)], monkeypatch, capsys)
    assert f"{file}:{function}" in said
    assert (code, "has no gradient" in said, 'method.name = "ram"' in said) == (2, True, True)
    assert not (tmp_path / "run").exists()


def trained(reward_setting: str, run: Path, *more: str) -> list[dict[str, Any]]:
    """What the steps of a run logged."""
    train(load_recipe("shapes", [*RAM, reward_setting, *more]), run)
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [{key: value for key, value in line.items() if not key.startswith(("seconds/", "share/", "collection/"))}
            for line in lines if "loss" in line]  # fmt: skip


def test_numbers_in_any_form_train_alike(file: Path, tmp_path: Path) -> None:
    """A tensor with gradient, without, a list of numbers, a list of tensors, an array, a number per image."""
    losses = {}
    for function in ("differentiable", "detached", "numbers", "tensors", "array", "alone"):
        options = {"images_per_call": 1} if function == "alone" else {}
        lines = trained(reward(f"python:{file}:{function}", **options), tmp_path / function)
        losses[function] = [(line["loss"], line["reward/mean"], line["gradient_norm"]) for line in lines]
    expected = losses.pop("differentiable")
    assert expected[0][1] > 0
    for function, found in losses.items():
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, rel=1e-4), function


def test_a_groupwise_reward_gets_one_whole_group_per_call(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"python:{file}:ranks"
    more = ["training.collection_batch=1", "training.validate_every=1", "evaluation.every=1", "evaluation.prompts=3",
            "evaluation.samples_per_prompt=2", "evaluation.batch_size=3", "evaluation.diversity=[]",
            "evaluation.metrics=[]"]  # fmt: skip
    lines = trained(reward(name, groupwise=True), tmp_path / "run", *more)
    assert [line["reward/mean"] for line in lines] == [0.5, 0.5]  # ranks 0 and 1 in each group
    assert lines[0]["gradient_norm"] > 0
    assert lines[0]["validation/reward"] == 0.5
    (result,) = (tmp_path / "run/checkpoints/step-000002/evaluation").glob("*.json")
    assert json.loads(result.read_text())["metrics"][name]["mean"] == 0.5
    code, said = amsd(["recipe", "check", "shapes", *settings(reward(name, groupwise=True), *FEW)], monkeypatch, capsys)
    assert code == 2
    assert "groupwise = true" in said
    assert 'method.name = "ram"' in said


def test_groups_in_parts_are_scored_as_groups_at_once(file: Path, tmp_path: Path) -> None:
    name = reward(f"python:{file}:whole", groupwise=True)
    one, other = (trained(name, tmp_path / str(size), f"training.collection_batch={size}") for size in (1, 4))
    assert [line["reward/mean"] for line in one] == pytest.approx([line["reward/mean"] for line in other], rel=1e-5)


def test_the_same_through_a_server_to_the_digit(tmp_path: Path) -> None:
    local = trained(reward(COUNT), tmp_path / "local")
    with serving(example("shape_count").shape_count) as url:
        served = trained(reward(url), tmp_path / "served")
    for one, other in zip(local, served, strict=True):
        keys = {
            key
            for key in one
            if not key.startswith("reward/python:") and not key.startswith("performance/") and key != "time"
        }
        assert {key: one[key] for key in keys} == {key: other[key] for key in keys}
        assert one[f"reward/{COUNT}"] == other[f"reward/{url}"] > 0.5
    notices = [
        line for line in (tmp_path / "served" / "metrics.jsonl").read_text().splitlines() if "are sent to" in line
    ]
    assert len(notices) == 1
    assert url in notices[0]


def test_a_received_run_sends_nothing_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []

    def score(images: Any, prompts: list[str]) -> list[float]:
        asked.append(len(images))
        return [0.0] * len(images)

    with serving(score, "1") as url:
        trained(reward(url), tmp_path / "run")
        asked.clear()
        run = tmp_path / "run"
        written = str(run / "recipe.toml")
        commands: list[list[object]] = [
            ["eval", run],
            ["eval", "base", "--recipe", written],
            ["diagnose", written],
            ["train", written, "-o", tmp_path / "other"],
            ["train", written, "-o", run, "--resume"],
        ]
        for command in commands:
            code, said = amsd(command, monkeypatch, capsys)
            assert code == 2, said
            assert url in said
            assert "--allow-code" in said
        assert not asked
        own = tmp_path / "own.toml"
        own.write_text(dump_toml(load_recipe("shapes", [*RAM, reward(url), "training.steps=3"])), encoding="utf-8")
        outcome = CliRunner().invoke(app, ["train", str(own), "-o", str(tmp_path / "third")])
        assert outcome.exit_code == 0, outcome.output
        assert asked


def test_a_password_in_a_url_reaches_no_message_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    url = "http://me:hunter2@127.0.0.1:9/score"
    for name in (reward(url), f'evaluation.metrics=["{url}"]', f"evaluation.best={url}"):
        for command in (["recipe", "check", "shapes"], ["train", "shapes"], ["train", "shapes", "--dry-run"]):
            code, said = amsd([*command, *settings(name, *RAM)], monkeypatch, capsys)
            assert code == 2
            assert "hunter2" not in said
            assert "token_env" in said
    assert not list(tmp_path.iterdir())
