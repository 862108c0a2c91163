"""Identities change with what they identify and with nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from amsd.evaluation.identity import identity, pipeline_identity
from tests.pipelines import ddim, stable_diffusion, stable_diffusion_xl


def test_order_of_keys_does_not_matter_and_values_do() -> None:
    assert identity({"a": 1, "b": [2.0]}) == identity({"b": [2.0], "a": 1})
    assert len({identity({"a": value}) for value in (1, 2, "1", None, [1])}) == 5


def test_nan_has_no_identity() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        identity({"a": float("nan")})


@pytest.mark.parametrize("build", [stable_diffusion, stable_diffusion_xl])
def test_equal_pipelines_are_equal_and_every_part_counts(build: Callable[..., Any]) -> None:
    found = pipeline_identity(build(0))
    assert pipeline_identity(build(0)) == found
    assert pipeline_identity(build(1)) != found
    for name in ("unet", "vae", "text_encoder"):
        changed = build(0)
        with torch.no_grad():
            next(getattr(changed, name).parameters()).flatten()[0] += 1e-6
        assert pipeline_identity(changed) != found, name


def test_the_scheduler_is_no_part_of_the_weights() -> None:
    assert pipeline_identity(stable_diffusion(0)) == pipeline_identity(
        stable_diffusion(0, scheduler=ddim("v_prediction"))
    )


def test_half_precision_is_another_identity() -> None:
    assert pipeline_identity(stable_diffusion(0).to(torch.bfloat16)) != pipeline_identity(stable_diffusion(0))
