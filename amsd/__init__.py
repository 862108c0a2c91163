"""amsd: fine-tune Stable Diffusion on a differentiable reward by Adjoint Matching."""

from importlib import import_module
from typing import Any

from amsd.quiet import drop_remarks

__version__ = "0.1.0"

#: What a notebook needs, by the module that it is imported from when it is used: importing amsd itself costs nothing.
#: `__init__.pyi` says the same to type checkers and editors.
_FACE = {
    "AMTrainer": "amsd.training.methods.adjoint_matching",
    "AmsdError": "amsd.errors",
    "BufferAMTrainer": "amsd.training.methods.adjoint_matching",
    "BufferSOCTrainer": "amsd.training.trainer",
    "Cost": "amsd.recipe",
    "DDPOTrainer": "amsd.training.methods.ddpo",
    "DRaFTTrainer": "amsd.training.methods.draft",
    "EAMTrainer": "amsd.training.methods.eam",
    "EvaluationResult": "amsd.evaluation.result",
    "Finished": "amsd.experiment.train",
    "Log": "amsd.tracking.log",
    "MethodSection": "amsd.recipe",
    "PromptSet": "amsd.prompts",
    "RAMTrainer": "amsd.training.methods.ram",
    "ReFLTrainer": "amsd.training.methods.refl",
    "Recipe": "amsd.recipe",
    "Run": "amsd.report.data",
    "RunDirectory": "amsd.run_directory",
    "RunError": "amsd.errors",
    "SOCDDIMScheduler": "amsd.diffusion.families.ddim_scheduler",
    "SOCTrainer": "amsd.training.trainer",
    "SampleRequest": "amsd.experiment.sample",
    "SweepResults": "amsd.sweep.results",
    "Tracker": "amsd.tracking",
    "UsageError": "amsd.errors",
    "build_accelerator": "amsd.experiment.setup",
    "build_problem": "amsd.experiment.setup",
    "diagnose": "amsd.experiment.diagnose",
    "dump_toml": "amsd.recipe",
    "evaluate_checkpoint": "amsd.experiment.evaluate",
    "export": "amsd.experiment.export",
    "from_dict": "amsd.recipe",
    "load_policy": "amsd.experiment.setup",
    "load_prompts": "amsd.prompts",
    "load_recipe": "amsd.recipe",
    "load_run": "amsd.report.data",
    "load_sweep": "amsd.sweep.results",
    "read_log": "amsd.tracking.log",
    "sample": "amsd.experiment.sample",
    "train": "amsd.experiment.train",
    "write_report": "amsd.report.source",
    # diffusers asks for it when it loads a pipeline that names amsd
    "SchedulerMixin": "amsd.diffusion.families.ddim_scheduler",
}
__all__ = ["__version__", *_FACE]

drop_remarks()


def __getattr__(name: str) -> Any:
    """A name of the library's face, imported now."""
    if name not in _FACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_FACE[name]), name)


def __dir__() -> list[str]:
    """The face, for completion in a notebook."""
    return [*_FACE, "__version__"]
