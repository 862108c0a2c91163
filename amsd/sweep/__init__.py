"""Sweeps: a search over recipes, run by workers that lose nothing and run nothing twice.

What is asked: `schema`, `search`, `load`, `checks`. Where it is kept: `storage`, `optuna_access`, `algorithms`,
`study`. Who works: `jobs`, `trial`, `claims`, `worker`, `launchers`, `wandb_backend`. What was found: `results`,
`display`, `export`.
"""

from amsd.sweep.load import load_plan
from amsd.sweep.results import SeedRun, SweepResults, TrialResult, load_sweep
from amsd.sweep.schema import Sweep, SweepPlan

__all__ = ["SeedRun", "Sweep", "SweepPlan", "SweepResults", "TrialResult", "load_plan", "load_sweep"]
