"""Which device a run takes."""

from __future__ import annotations

import pytest
import torch

from amsd.experiment import setup


@pytest.mark.parametrize(("kind", "allowed", "cpu"), [("mps", None, True), ("mps", "1", False), ("cuda", None, False)])
def test_mps_is_used_only_where_the_user_asks_for_it(
    kind: str, allowed: str | None, cpu: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
    if allowed is not None:
        monkeypatch.setenv("AMSD_MPS", allowed)
    with caplog.at_level("WARNING", logger="amsd"):
        assert setup._use_cpu() is cpu
    assert ("AMSD_MPS=1" in caplog.text) is cpu


def test_without_an_accelerator_it_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: None)
    assert setup._use_cpu() is True
