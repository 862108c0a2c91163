"""Sweeps: a search over recipes, run by workers that lose nothing and run nothing twice."""

from amsd.sweep.plan import Plan, load_plan
from amsd.sweep.results import SeedRun, SweepResults, TrialResult, load_sweep
from amsd.sweep.schema import Sweep

__all__ = ["Plan", "SeedRun", "Sweep", "SweepResults", "TrialResult", "load_plan", "load_sweep"]
