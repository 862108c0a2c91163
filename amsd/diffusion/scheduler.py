"""Where pipelines that early versions of amsd saved look for `SOCDDIMScheduler`: they name this module."""

from __future__ import annotations

from amsd.diffusion.families.ddim_scheduler import SchedulerMixin, SOCDDIMScheduler

__all__ = ["SOCDDIMScheduler", "SchedulerMixin"]
