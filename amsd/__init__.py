"""amsd: fine-tune Stable Diffusion on a differentiable reward by Adjoint Matching."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The scheduler, imported when it is used; diffusers asks for both names when it loads a saved pipeline."""
    if name in ("SOCDDIMScheduler", "SchedulerMixin"):
        from amsd.diffusion import scheduler

        return getattr(scheduler, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
