"""The benchmarks run to their end; their numbers need the machine that they are about."""

from __future__ import annotations

import importlib.util
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from tests import pipelines

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("parameterization", ["lora", "full"])
def test_a_step_is_measured(parameterization: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step of SD 1.5's true size, on a tiny network."""
    specification = importlib.util.spec_from_file_location("sd15_step", BENCHMARKS / "sd15_step.py")
    assert specification is not None
    assert specification.loader is not None
    module: Any = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.setattr(module, "random_pipeline", pipelines.stable_diffusion)
    arguments = Namespace(
        parameterization=parameterization, precision="fp32", inference_steps=3, loss_steps=4, batch=2, steps=2,
        guidance_scale=7.5, no_checkpointing=False,
    )  # fmt: skip
    found = module.measure(arguments)
    assert found["latent_shape"] == [4, 8, 8]
    assert found["peak_memory_gib"] > 0.1
    assert found["values"]["images_per_second"] > 0
    assert {"seconds/rollout", "seconds/adjoint"} <= found["values"].keys()
