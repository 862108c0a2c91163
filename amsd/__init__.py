"""amsd: fine-tune Stable Diffusion on a differentiable reward by Adjoint Matching."""

from importlib import import_module
from typing import Any

from amsd.quiet import drop_remarks

__version__ = "0.1.0"

#: What a notebook needs, by the module that it is imported from when it is used: importing amsd itself costs nothing.
_FACE = {
    "AMTrainer": "amsd.training.methods.adjoint_matching",
    "BufferAMTrainer": "amsd.training.methods.adjoint_matching",
    "BufferSOCTrainer": "amsd.training.trainer",
    "EvaluationResult": "amsd.evaluation.result",
    "Recipe": "amsd.recipe",
    "RunDirectory": "amsd.run_directory",
    "SOCDDIMScheduler": "amsd.diffusion.families.ddim_scheduler",
    "SOCTrainer": "amsd.training.trainer",
    "SampleRequest": "amsd.experiment.sample",
    # diffusers asks for it when it loads a pipeline that names amsd
    "SchedulerMixin": "amsd.diffusion.families.ddim_scheduler",
    "dump_toml": "amsd.recipe",
    "evaluate_checkpoint": "amsd.experiment.evaluate",
    "export": "amsd.experiment.export",
    "from_dict": "amsd.recipe",
    "load_recipe": "amsd.recipe",
    "sample": "amsd.experiment.sample",
    "train": "amsd.experiment.train",
}

drop_remarks()


def __getattr__(name: str) -> Any:
    """A name of the library's face, imported now."""
    if name not in _FACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_FACE[name]), name)


def __dir__() -> list[str]:
    """The face, for completion in a notebook."""
    return [*_FACE, "__version__"]
