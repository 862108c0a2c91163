"""Moved to amsd.sweep.algorithms."""

from amsd.sweep.algorithms import MIN_TRIALS, importance

__all__ = ["MIN_TRIALS", "importance"]
