"""Moved to amsd.sweep.algorithms."""

from amsd.sweep.algorithms import SeededByTrial, sampler

__all__ = ["SeededByTrial", "sampler"]
