"""Moved to amsd.sweep.schema."""

from amsd.sweep.schema import SweepPlan

__all__ = ["SweepPlan"]
