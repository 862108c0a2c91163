"""The sweep tree: which recipes are tried, what decides between them, and when to stop.

`search` maps recipe keys to dimensions (amsd.sweep.search). `SweepPlan` is a sweep with the recipe it is based on.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, AliasChoices, Field, field_validator, model_validator

from amsd.recipe import Recipe, from_dict
from amsd.recipe.load import as_before, assign
from amsd.recipe.section import Name, Positive, RequiredName, Section, required
from amsd.sweep.search import Dimension

#: Prefix of objectives and constraints that are read from the training log instead of the evaluation.
TRAINING = "train/"
#: Version of sweep files and of the plans that are written from them.
FORMAT: Final = 1


def _measured(metric: str) -> str:
    if metric == TRAINING:
        raise ValueError(f"names no scalar of the training log after {TRAINING}, such as train/kl")
    return metric


Measured = Annotated[RequiredName, AfterValidator(_measured)]
"""An evaluation metric, or `train/<scalar>`."""


class Objective(Section):
    """What is optimized: an evaluation metric, or `train/<scalar>` of the training log."""

    metric: Measured
    """Such as `shapes:alignment`, `diversity/shapes:classifier` or `train/kl`."""
    direction: Literal["maximize", "minimize"] = "maximize"
    value: Literal["mean", "difference"] = "mean"
    """The mean, or the paired difference to the base model."""
    setting: Name | None = None
    """Evaluation setting by name; unset: the first of each run."""
    at: Literal["last", "best"] = "last"
    """Which checkpoint's evaluation counts."""

    @property
    def label(self) -> str:
        """Unique short name, such as `shapes:right (difference)`."""
        parts = (
            "difference" if self.value == "difference" else None,
            "best" if self.at == "best" else None,
            self.setting,
        )
        extra = [part for part in parts if part]
        return f"{self.metric} ({', '.join(extra)})" if extra else self.metric


class Constraint(Section):
    """A bound that a feasible trial keeps, such as a KL budget: `metric = "train/kl"`, `at_most = 20`."""

    metric: Measured
    at_most: float | None = None
    at_least: float | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("needs exactly one of at_most and at_least")
        return self

    def violation(self, value: float) -> float:
        """By how much `value` breaks the bound; zero or less is feasible."""
        return value - self.at_most if self.at_most is not None else (self.at_least or 0.0) - value


class SearchSampler(Section):
    """How the next point is chosen."""

    name: Literal["tpe", "gp", "qmc", "grid", "nsga2", "random"] = "tpe"
    seed: int | None = Field(default=None, ge=0)
    """With one worker, two sweeps of one seed propose the same points (`random`: with any number of workers)."""
    startup_trials: int = Field(default=10, ge=1)
    """Trials drawn at random before TPE or GP use a model."""


class Pruner(Section):
    """Which unpromising trials end early; needs a single objective and several checkpoints per run."""

    name: Literal["none", "median", "percentile", "hyperband"] = "none"
    percentile: float = Field(default=25.0, gt=0, lt=100)
    """`percentile` keeps this best share of the trials, in percent."""
    startup_trials: int = Field(default=4, ge=0)
    """Trials that complete before anything is pruned."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps of a run before it may be pruned."""


class Budget(Section):
    """When the sweep ends; whichever comes first."""

    trials: int | None = Field(default=None, ge=1, le=1_000_000_000)
    """Points that are tried (a grid: all of them by default)."""
    seconds: Positive | None = None
    """Seconds of trials, summed over all workers (so an interruption costs nothing)."""
    network_calls: Positive | None = Field(
        default=None, validation_alias=AliasChoices("network_calls", "unet_evaluations")
    )
    """Network calls of training in forward-equivalents (docs/method.md section 7), summed over all trials; sweeps of
    earlier versions write `unet_evaluations`."""


class Execution(Section):
    """How one trial is run."""

    processes: int = Field(default=1, ge=1, le=10_000)
    """Processes (accelerate ranks) per trial."""
    gpus: float | None = Field(default=None, ge=0)
    """GPUs per trial; below 1, trials share one. Unset: `processes` where there are GPUs."""
    cpus: int = Field(default=1, ge=1)
    """CPU cores per process, for placing trials on a Ray cluster."""
    command: tuple[str, ...] | None = Field(default=None, min_length=1)
    """What runs a trial, before `RECIPE --output DIR [--resume]`; unset: `python -m amsd train`."""
    poll_seconds: Positive = 1.0
    """How often a running trial's log is read."""
    heartbeat_seconds: Positive = 15.0
    """How often a worker says that it is alive."""
    lost_after_seconds: Positive = 90.0
    """Silence after which a worker's trial is queued again."""
    terminate_seconds: Positive = 30.0
    """Time between SIGTERM and SIGKILL for a trial that must end."""
    attempts: int = Field(default=3, ge=1)
    """How many times a trial is started in total, if its workers are lost."""
    stop_after_failures: int = Field(default=3, ge=1)
    """The sweep stops if its first n finished trials all fail with the same error."""

    @field_validator("command")
    @classmethod
    def _names_a_program(cls, command: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if command is not None:
            required(command[0])
        return command

    @field_validator("gpus")
    @classmethod
    def _whole_or_a_share(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1 and gpus != int(gpus):
            raise ValueError("must be a whole number, or a share of one GPU below 1")
        return gpus


class Slurm(Section):
    """What `--launcher slurm` asks for, per worker."""

    partition: Name | None = None
    account: Name | None = None
    qos: Name | None = None
    minutes: int = Field(default=1440, ge=1)
    """Time limit of a job. At the limit its trial goes back with a checkpoint, and the job is queued again."""
    nodes: int = Field(default=1, ge=1)
    """Nodes per trial, with `execution.processes` processes on each; torchrun's rendezvous joins them."""
    gpus: int | None = Field(default=None, ge=0)
    """Per node. Unset: `execution.processes`; none if `gres` is set."""
    gres: Name | None = None
    """Generic resources instead of `gpus`, such as `gpu:a100:2`."""
    constraint: Name | None = None
    """Features that a node must have."""
    exclude: Name | None = None
    """Nodes that are not used."""
    cpus: int = Field(default=8, ge=1)
    memory_gb: int | None = Field(default=None, ge=1)
    signal_seconds: int = Field(default=180, ge=1)
    """How long before the time limit a job is told to hand back its trial: time for a step and a checkpoint."""
    options: Mapping[RequiredName, str | int] = Field(default_factory=dict)
    """Any further options of sbatch, such as `mail-type`."""
    setup: tuple[str, ...] = ()
    """Shell lines before the worker starts, such as `module load cuda`."""


class Sweep(Section):
    """A search over recipes."""

    format: Literal[1] = FORMAT
    """Version of this file's format."""
    name: Name = Field(max_length=100)
    """Study name and W&B group; unset in a file: the file's stem."""
    description: str = ""
    recipe: RequiredName
    """Base recipe: a file, relative to the sweep file, or the name of a shipped recipe."""
    override: Mapping[str, Any] = Field(default_factory=dict)
    """Recipe keys that differ from the base recipe in every trial."""
    search: Mapping[RequiredName, Dimension] = Field(min_length=1)
    """Recipe key (or a free name, with `variants`) -> dimension."""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(default=(0,), min_length=1)
    """Training seeds per point; objectives are means over them."""
    objective: tuple[Objective, ...] = Field(min_length=1)
    constraint: tuple[Constraint, ...] = ()
    first: tuple[Mapping[str, Any], ...] = ()
    """Points tried first, as values of dimensions; what a point leaves out is sampled."""
    sampler: SearchSampler = SearchSampler()
    pruner: Pruner = Pruner()
    budget: Budget = Budget()
    execution: Execution = Execution()
    slurm: Slurm = Slurm()

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if name.startswith(".") or not name.isprintable() or set(name) & set('/\\:*?"<>|'):
            raise ValueError(
                'is also the name of a folder: it must not begin with a dot or contain any of / \\ : * ? " < > |'
            )
        return name

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed is listed twice")
        return seeds


@dataclass(frozen=True)
class SweepPlan:
    """A checked sweep with its base recipe; all that a worker needs to know."""

    sweep: Sweep
    tree: Mapping[str, Any]
    """Base recipe with the overrides, as plain data."""
    older: bool = False
    """Whether it was begun before plans had a format: keys that came later mean what they meant then."""

    @cached_property
    def recipe(self) -> Recipe:
        """The base recipe with the overrides."""
        return from_dict(self._meant(self.tree), source=f"base recipe of sweep {self.sweep.name}")

    def resolve(self, settings: Mapping[str, Any]) -> Recipe:
        """The recipe of a point.

        Raises:
            RecipeError: these values do not go together.
        """
        tree = copy.deepcopy(dict(self.tree))
        for key, value in settings.items():
            assign(tree, key, value)
        shown = ", ".join(f"{key} = {value}" for key, value in settings.items())
        return from_dict(self._meant(tree), source=f"sweep {self.sweep.name} at {shown}")

    def _meant(self, tree: Mapping[str, Any]) -> Mapping[str, Any]:
        return as_before(tree) if self.older else tree

    def dump(self) -> dict[str, Any]:
        """As JSON data, for the storage."""
        sweep = self.sweep.model_dump(mode="json", exclude_unset=True)
        version = {} if self.older else {"format": FORMAT}
        return {**version, "sweep": sweep, "recipe": dict(self.tree)}
