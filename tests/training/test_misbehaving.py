"""Rewards that misbehave in the middle of a run: each is named with the step, and none touches another term."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from typer.testing import CliRunner

from amsd.cli import main
from amsd.cli.app import app
from amsd.diffusion.parameterizations import build_policy
from amsd.errors import AmsdError
from amsd.recipe import from_dict
from amsd.rewards.calling import RewardFailed, call
from amsd.rewards.combination import Term, WeightedReward
from amsd.rewards.simple import Brightness
from amsd.rewards.user import FunctionReward
from amsd.run_directory import RunDirectory
from amsd.training.checkpoint import newest_whole
from amsd.training.methods import trainer_of
from amsd.training.problem import ControlProblem
from tests.training.gaussian import GaussianFamily
from tests.training.listening import Values
from tests.training.test_closed_form import steps_of

STEPS = 4


class Turning:
    """The mean of an image, until the second step; from then on what `wrong` makes of images and scores."""

    name, version = "turning", "1"

    def __init__(self, wrong: Callable[[Tensor, list[str], Tensor], Any], calls: int = 1) -> None:
        self.wrong, self.left = wrong, calls

    def __call__(self, images: Tensor, prompts: Any) -> Any:
        self.left -= 1
        scores = images.mean((1, 2, 3))
        return scores if self.left >= 0 else self.wrong(images, prompts, scores)

    def to(self, device: Any) -> Any:
        return self

    def truncated(self, prompts: Any) -> int:
        return 0


def trained(reward: WeightedReward, folder: Path, method: str = "am", steps: int = 3) -> list[dict[str, float]]:
    """Values of the steps of a run on a Gaussian base, with a checkpoint after each."""
    recipe = from_dict(
        {
            "schedule": {"num_inference_steps": STEPS},
            "guidance": {"guidance_scale": 1.0},
            "method": {"name": method, "reward_multiplier": 1.0, "timesteps_per_trajectory": 2},
            "reward": [{"name": "brightness"}],
            "optimizer": {"prompts_per_step": 4, "micro_batch": 4},
            "training": {"steps": steps, "checkpoint_every": 1, "collection_batch": 4},
            "evaluation": {"every": 0},
        }
    )
    family, accelerator = GaussianFamily(STEPS), Accelerator(cpu=True)
    policy = build_policy(family, recipe.model)
    problem = ControlProblem(recipe, family, policy, steps_of(STEPS), reward, accelerator.device)
    run = RunDirectory(folder)
    trainer_of(recipe.method)(problem, run, ["anything"], accelerator, [values := Values()]).fit()
    return values.of_steps


def raises(error: BaseException) -> Callable[..., Any]:
    def fail(images: Tensor, prompts: list[str], scores: Tensor) -> Any:
        raise error

    return fail


class Odd(BaseException):
    """What no `except Exception` sees."""


WRONG: dict[str, tuple[Callable[[Tensor, list[str], Tensor], Any], str]] = {
    "a column": (lambda x, p, s: s[:, None], r"returned a tensor of shape \(4, 1\) .* for 4 images"),
    "too few": (lambda x, p, s: s[:-1], r"returned a tensor of shape \(3,\)"),
    "one for all": (lambda x, p, s: s.mean(), r"shape \(\) .*images_per_call = 1"),
    "raise": (raises(ValueError("no face in\nthis picture")), r"raised ValueError: no face in this picture"),
    "raise without words": (raises(AssertionError()), r"raised AssertionError"),
    "raise what is no Exception": (raises(Odd("odd")), r"raised Odd: odd"),
    "exit": (raises(SystemExit(0)), r"tried to end the process \(SystemExit: 0\)"),
    "None": (lambda x, p, s: None, r"returned None for 4 images"),
    "text": (lambda x, p, s: "0.5", r"returned '0\.5' \(a str\) for 4 images"),
    "a dictionary": (lambda x, p, s: {"score": 1}, r"a dict\) for 4 images"),
    "complex": (lambda x, p, s: s.to(torch.complex64), r"type torch\.complex64"),
    "texts": (lambda x, p, s: ["1"] * 4, r"a list of 4 str for 4 images"),
    "a number that is none": (lambda x, p, s: s * float("nan"), r"'turning' is nan for 4 of 4 images"),
    "infinite": (lambda x, p, s: s / 0, r"'turning' is inf for 4 of 4 images"),
    "beyond float32": (lambda x, p, s: s.double() * 1e300, r"returned .*e\+299, .*too large for float32"),
    "a sum beyond float32": (lambda x, p, s: s / s.detach() * 3e38, "weighted sum of the rewards"),
    "another device": (lambda x, p, s: s.to("meta"), r"returned scores on meta, which cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("method", ["am", "ram"])
@pytest.mark.parametrize("kind", WRONG)
def test_what_a_reward_does_wrong_is_named_with_the_step(kind: str, method: str, tmp_path: Path) -> None:
    wrong, text = WRONG[kind]
    reward = WeightedReward([Term(Brightness()), Term(Turning(wrong), weight=2.0)])
    with pytest.raises(AmsdError, match=rf"(?s)^Step 2: .*{text}") as failure:
        trained(reward, tmp_path / "run", method)
    assert failure.value.exit_code == 1
    if "sum" not in kind:
        assert "'turning'" in str(failure.value)
    run = RunDirectory(tmp_path / "run")
    assert newest_whole(run) == run.checkpoint(1)


def test_scores_that_lost_their_gradient_are_named_where_one_is_needed(tmp_path: Path) -> None:
    def detached(images: Tensor, prompts: list[str], scores: Tensor) -> Tensor:
        return scores.detach()

    reward = WeightedReward([Term(Brightness()), Term(Turning(detached))])
    with pytest.raises(RewardFailed, match=r"^Step 2: reward 'turning' has no gradient"):
        trained(reward, tmp_path / "am", "am")
    assert len(trained(WeightedReward([Term(Turning(detached))]), tmp_path / "ram", "ram")) == 3


def test_a_gradient_that_is_not_finite_is_named_by_its_term(tmp_path: Path) -> None:
    def steep(images: Tensor, prompts: list[str], scores: Tensor) -> Tensor:
        return scores + (images - images.detach()).abs().sum((1, 2, 3)).sqrt()

    reward = WeightedReward([Term(Brightness()), Term(Turning(steep))])
    with pytest.raises(RewardFailed, match=r"^Step 2: the gradient of the reward 'turning' is not finite for 4 of 4"):
        trained(reward, tmp_path / "run")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), torch.OutOfMemoryError("out of memory"), MemoryError()])
def test_an_interruption_and_a_shortage_stay_what_they_are(error: BaseException) -> None:
    with pytest.raises(type(error)):
        call(Turning(raises(error), calls=0), torch.rand(2, 3, 4, 4), ["", ""])


def test_the_line_of_the_users_code_is_named() -> None:
    def fail(images: Tensor, prompts: list[str], scores: Tensor) -> Any:
        return 1 / 0

    with pytest.raises(RewardFailed, match=rf"raised ZeroDivisionError: division by zero \({__file__}, line \d+\)"):
        call(Turning(fail, calls=0), torch.rand(2, 3, 4, 4), ["", ""])


def paints(images: Tensor, prompts: list[str], scores: Tensor) -> Tensor:
    """Writes into everything that it is given, and switches for the whole process what can be switched."""
    own = scores.clone()
    images.mul_(0)
    images.data.fill_(7)
    prompts.clear()
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_autocast_enabled("cpu", True)
    os.chdir("/")
    return own


@pytest.mark.parametrize("method", ["am", "ram"])
def test_a_reward_that_writes_into_its_input_changes_nothing_but_itself(method: str, tmp_path: Path) -> None:
    honest = WeightedReward([Term(Turning(paints, calls=100), weight=2.0), Term(Brightness())])
    painting = WeightedReward([Term(Turning(paints, calls=0), weight=2.0), Term(Brightness())])
    place = Path.cwd()
    one, other = (trained(each, tmp_path / str(i), method) for i, each in enumerate((honest, painting)))
    for key in ("loss", "reward/turning", "reward/brightness", "reward/mean", "gradient_norm"):
        assert [step[key] for step in one] == [step[key] for step in other], key
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")
    assert torch.get_default_dtype() == torch.float32
    assert torch.get_default_device() == torch.device("cpu")
    assert Path.cwd() == place


def test_what_a_users_file_switches_is_switched_back(tmp_path: Path) -> None:
    """When it is imported, and between the calls that share a batch, which else lose their gradient."""
    source = "import os, torch\ntorch.set_default_dtype(torch.float64)\nos.chdir('/')\n\n\ndef f(images, prompts):\n"
    source += "    scores = images.mean((1, 2, 3))\n    torch.set_grad_enabled(False)\n    return scores\n"
    (tmp_path / "mine.py").write_text(source, encoding="utf-8")
    place = Path.cwd()
    reward = FunctionReward(f"{tmp_path / 'mine.py'}:f", images_per_call=1)
    assert Path.cwd() == place
    assert torch.get_default_dtype() == torch.float32
    images = torch.rand(3, 3, 4, 4, requires_grad=True)
    call(reward, images, ["", "", ""]).sum().backward()
    assert images.grad is not None
    torch.testing.assert_close(images.grad, torch.full_like(images, 1 / 48))


def test_a_buffer_that_is_used_again_does_not_change_older_scores() -> None:
    buffer = torch.zeros(2)

    def reuse(images: Tensor, prompts: list[str], scores: Tensor) -> Tensor:
        return buffer.copy_(scores)

    reward = Turning(reuse, calls=0)
    first = call(reward, torch.zeros(2, 3, 4, 4), ["", ""])
    call(reward, torch.ones(2, 3, 4, 4), ["", ""])
    assert first.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "convert",
    [Tensor.half, Tensor.double, lambda scores: scores.double().numpy(), lambda scores: scores.tolist(), tuple, list,
     lambda scores: [np.float64(each) for each in scores]],
)  # fmt: skip
def test_other_kinds_of_numbers_are_scores_too(convert: Callable[[Tensor], Any]) -> None:
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 2, 2) / 4
    found = call(Turning(lambda x, p, s: convert(s), calls=0), images, [""] * 4)
    assert (found.tolist(), found.dtype) == ([0.0, 0.25, 0.5, 0.75], torch.float32)
    whole = call(Turning(lambda x, p, s: (s * 4).to(torch.int64), calls=0), images, [""] * 4)
    assert whole.tolist() == [0.0, 1.0, 2.0, 3.0]


SOURCE = """
calls = 0

def late(images, prompts):
    global calls
    calls += 1
    if calls > 2:
        WRONG
    return images.mean((1, 2, 3))
"""


@pytest.mark.parametrize(
    ("wrong", "code", "text"),
    [
        ("raise SystemExit(3)", 1, "Step 2: reward 'python:{file}:late' tried to end the process (SystemExit: 3)"),
        (
            "raise ValueError('tired')",
            1,
            "Step 2: reward 'python:{file}:late' raised ValueError: tired ({file}, line 8)",
        ),
        ("raise KeyboardInterrupt", 130, ""),
        ("return 'high'", 1, "Step 2: reward 'python:{file}:late' returned 'high' (a str) for 4 images"),
    ],
)
def test_the_command_line_says_it_in_one_message(
    wrong: str,
    code: int,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "late.py"
    file.write_text(SOURCE.replace("WRONG", wrong), encoding="utf-8")
    settings = [
        f'reward=[{{name = "brightness"}}, {{name = "python:{file}:late"}}]', "schedule.num_inference_steps=3",
        "method.timesteps_per_trajectory=2", "optimizer.prompts_per_step=4", "optimizer.micro_batch=4",
        "training.steps=3", "training.checkpoint_every=1", "training.collection_batch=4", "evaluation.every=0",
        "tracking.trackers=none",
    ]  # fmt: skip
    words = [word for setting in settings for word in ("--set", setting)]
    monkeypatch.setattr(sys, "argv", ["amsd", "train", "shapes", "-o", str(tmp_path / "run"), *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == code
    said = capsys.readouterr().err
    assert text.format(file=file) in said
    assert "Traceback" not in said
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1]
    file.write_text(SOURCE.replace("WRONG", "pass"), encoding="utf-8")
    words = [*sys.argv[1:], "--resume", "--allow-code"]
    outcome = CliRunner().invoke(app, words)
    assert outcome.exit_code == 0, outcome.output
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]


def test_a_metric_that_fails_is_named_with_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "metric.py"
    file.write_text("def broken(images, prompts):\n    raise ValueError('no face')\n", encoding="utf-8")
    settings = [
        f'evaluation.metrics=["python:{file}:broken"]', "evaluation.prompts=2", "schedule.num_inference_steps=3",
        "method.timesteps_per_trajectory=2", "optimizer.prompts_per_step=2", "optimizer.micro_batch=2",
        "training.steps=1", "evaluation.diversity=[]", "tracking.trackers=none",
    ]  # fmt: skip
    words = [word for setting in settings for word in ("--set", setting)]
    monkeypatch.setattr(sys, "argv", ["amsd", "train", "shapes", "-o", str(tmp_path / "run"), *words])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert f"metric 'python:{file}:broken' raised ValueError: no face ({file}, line 2)" in said
