"""Sweeps: a search over recipes, run by workers that lose nothing and run nothing twice."""

from amsd.sweep.load import load_plan
from amsd.sweep.results import SeedRun, SweepResults, TrialResult, load_sweep
from amsd.sweep.schema import Sweep, SweepPlan

__all__ = ["SeedRun", "Sweep", "SweepPlan", "SweepResults", "TrialResult", "load_plan", "load_sweep"]
