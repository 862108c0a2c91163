"""Moved to amsd.sweep.trial."""

from amsd.sweep.trial import Point, make_point, points_to_queue

__all__ = ["Point", "make_point", "points_to_queue"]
