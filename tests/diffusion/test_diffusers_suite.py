"""diffusers' own tests of `DDIMScheduler`, run on `SOCDDIMScheduler` from a checkout of diffusers.

DIFFUSERS_CHECKOUT names the checkout; without it everything here is skipped (`nox -s diffusers_suite` says so).
"""

from __future__ import annotations

import importlib
import os
import sys
import types
import unittest
from pathlib import Path

import pytest

from amsd.diffusion.families.ddim_scheduler import SOCDDIMScheduler

VARIABLE = "DIFFUSERS_CHECKOUT"

#: Tests that cannot hold, with the message that they must end in. Everything else must pass.
OFF_GRID = "is not on the grid"
REFUSED = {
    "test_steps_offset": OFF_GRID,  # step(t = 0) where the offset moves the grid to 1, 21, 41 ...
    "test_timestep_spacing": OFF_GRID,  # step(t = 0) on the trailing grid 19, 39, 59 ...
    "test_time_indices": OFF_GRID,  # step(t = 1) on the grid 0, 20, 40 ...
    "test_inference_steps": OFF_GRID,  # step(t = 1) on the grid 0, 100, 200 ...
    "test_eta": OFF_GRID,  # step(t = 1) on the grid 0, 20, 40 ...
}

_checkout = os.environ.get(VARIABLE)
if not _checkout:
    pytest.skip(f"{VARIABLE} names no checkout of diffusers", allow_module_level=True)


def _suite(checkout: Path) -> type[unittest.TestCase]:
    """The test case of the checkout, under a package name that does not meet the tests of amsd."""
    folder = checkout / "tests"
    if not (folder / "schedulers" / "test_scheduler_ddim.py").is_file():
        raise FileNotFoundError(f"{VARIABLE}={checkout}: no tests/schedulers/test_scheduler_ddim.py there")
    package = types.ModuleType("diffusers_suite")
    package.__path__ = [str(folder)]
    sys.modules["diffusers_suite"] = package
    module = importlib.import_module("diffusers_suite.schedulers.test_scheduler_ddim")
    case: type[unittest.TestCase] = module.DDIMSchedulerTest
    return case


class _Ours(_suite(Path(_checkout))):  # type: ignore[misc]
    __test__ = False
    scheduler_classes = (SOCDDIMScheduler,)


_NAMES = unittest.TestLoader().getTestCaseNames(_Ours)


@pytest.mark.parametrize("name", _NAMES)
def test_of_diffusers(name: str) -> None:
    case = _Ours(name)
    case.setUp()
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]):
            getattr(case, name)()
        return
    try:
        getattr(case, name)()
    except ImportError as error:  # test_compatibles builds schedulers that need torchsde
        pytest.skip(f"diffusers asks for a package that is not here: {error}")


def test_every_exception_of_the_list_is_a_test_of_theirs() -> None:
    assert len(_NAMES) >= 28
    assert set(REFUSED) <= set(_NAMES)
