"""What must not change results: the launcher's settings, the number of processes, the precision, a longer resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amsd.errors import UsageError
from amsd.experiment.setup import build_accelerator
from amsd.experiment.train import train
from amsd.files import write_text
from amsd.matching import lean_adjoint
from amsd.recipe import dump_toml, load_recipe
from amsd.training import processes


@pytest.fixture
def exchanged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the exchanges of two processes that hold the same."""
    sizes: list[int] = []

    def reduced(flat: Tensor) -> None:
        sizes.append(flat.numel())
        flat.mul_(2)

    monkeypatch.setattr(processes, "world_size", lambda: 2)
    monkeypatch.setattr(processes.dist, "all_reduce", reduced)
    return sizes


def test_gradients_are_summed_in_buckets(exchanged: list[int]) -> None:
    parameters = [nn.Parameter(torch.zeros(size)) for size in (3, 4, 20, 5, 5)]
    parameters.append(nn.Parameter(torch.zeros(2, dtype=torch.float64)))
    for number, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, float(number))
    parameters[4].grad = None  # a process without rows
    processes.sum_gradients(parameters, bucket=10)
    assert exchanged == [7, 20, 10, 2]  # one dtype each, a large one alone
    for number, parameter in enumerate(parameters):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, torch.full_like(parameter, 0.0 if number == 4 else 2.0 * number))


def test_every_process_starts_from_the_weights_of_the_main_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def received(value: Tensor, src: int) -> None:
        assert src == 0
        value.fill_(7.0)

    monkeypatch.setattr(processes, "world_size", lambda: 2)
    monkeypatch.setattr(processes.dist, "broadcast", received)
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2))]
    processes.share_from_main(parameters)
    assert all(bool((parameter == 7).all()) for parameter in parameters)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4"),
        ("ACCELERATE_USE_FSDP", "true"),
        ("ACCELERATE_USE_DEEPSPEED", "1"),
        ("ACCELERATE_USE_MEGATRON_LM", "yes"),
    ],
)
def test_settings_of_the_launcher_that_change_gradients_are_refused(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f"{name} = '{value}'"):
        build_accelerator(load_recipe("shapes"))


@pytest.mark.parametrize(("schedule", "refused"), [("cosine", True), ("linear", True), ("constant", False)])
def test_a_rate_that_ends_with_the_run_refuses_a_longer_one(schedule: str, refused: bool, tmp_path: Path) -> None:
    settings = [f"optimizer.schedule={schedule}", "tracking.trackers=none"]
    write_text(tmp_path / "run" / "recipe.toml", dump_toml(load_recipe("shapes", settings)))
    longer: Any = load_recipe("shapes", [*settings, "training.steps=41", "reward[0].name=shapes:area"])
    # Where the length is no matter, the other reward is what is refused.
    expected = r"training\.steps = 41 after it was started with 40" if refused else r"reward"
    with pytest.raises(UsageError, match=expected):
        train(longer, tmp_path / "run", resume=True)


def test_adjoints_pass_float16_scaled_row_by_row() -> None:
    """|a| = 1e6 and 1e-6 in one batch: the first is infinite in float16, the second nothing."""
    matrix = torch.tensor([[0.5, 0.25], [0.0, 1.0]])
    A = torch.tensor([0.0], dtype=torch.float64)
    B = torch.tensor([1.0], dtype=torch.float64)
    terminal = torch.tensor([[1e6, 2e6], [1e-6, -1e-6]])

    def base(x: Tensor, k: int, rows: Tensor) -> Tensor:
        return (x @ matrix.T).to(torch.float16)

    found = lean_adjoint(terminal, torch.zeros(2, 2, 2), A, B, base, torch.zeros(2, dtype=torch.long))
    torch.testing.assert_close(found.adjoints[:, 0], terminal @ matrix, rtol=2e-3, atol=0)
