"""Moved to amsd.sweep.checks."""

from amsd.sweep.checks import gpu_bytes, memory_lines, needed_bytes

__all__ = ["gpu_bytes", "memory_lines", "needed_bytes"]
