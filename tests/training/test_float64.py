"""float64 never runs on a device that has none: what was made on the device is moved to the CPU first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from amsd.diffusion import agreement
from amsd.evaluation import metrics
from amsd.experiment import diagnose
from amsd.experiment.train import train
from amsd.rewards.simple import Brightness
from amsd.training import sampling
from amsd.training.methods import regression
from tests import pipelines
from tests.experiment.test_train import recipe


class OnDevice(Tensor):
    """A tensor as a device without float64 has it: what is computed from it stays there until it is moved."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_function__(func, types, args, kwargs or {})
        to_host = func is Tensor.cpu or (func is Tensor.to and "cpu" in map(str, [*args[1:], *(kwargs or {}).values()]))
        if to_host:
            return found.as_subclass(Tensor)
        if isinstance(found, OnDevice) and found.dtype is torch.float64:
            raise RuntimeError(f"{func.__name__}: cannot convert to float64, which this device does not have")
        return found


def on_device(value: Tensor) -> Tensor:
    return value.as_subclass(OnDevice)  # type: ignore[no-any-return]


def test_the_stand_in_notices_float64() -> None:
    value = on_device(torch.ones(3))
    assert (value * 2).cpu().double().sum() == 6
    for wrong in (
        lambda: value.double(),
        lambda: (value + 1).to(torch.float64),
        lambda: value * torch.ones(3).double(),
    ):
        with pytest.raises(RuntimeError, match="float64"):
            wrong()


@pytest.mark.parametrize("method", ["am", "buffer-am", "ram", "eam"])
def test_training_has_no_float64_on_the_device(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (sampling, regression):
        normal: Callable[..., Tensor] = module.normal
        monkeypatch.setattr(module, "normal", lambda *given, normal=normal: on_device(normal(*given)))
    pipelines.stable_diffusion(scheduler=pipelines.ddim()).save_pretrained(tmp_path / "model")
    chosen = recipe(
        tmp_path / "model", method={"name": method}, training={"steps": 1, "validate_every": 0}, evaluation={"every": 0}
    )
    assert train(chosen, tmp_path / "run").run.steps() == [1]


def test_diagnostics_and_checks_have_none() -> None:
    batch = on_device(torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)))
    assert diagnose.terminal_correlation(batch, batch, 2) == pytest.approx(1)
    assert agreement._close(batch, batch)


def test_metrics_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
    monkeypatch.setattr(metrics, "dequantize", lambda images: on_device(images.float() / 255))
    assert metrics.score(Brightness(), pictures, ["a", "b"], torch.device("cpu")) == [1.0, 1.0]
