"""`--backend wandb`: the W&B server chooses the points, its agents run them with the same code path.

The agent only reads the parameters it was given. The run itself is opened by the main process of `amsd train`, under
the id that the agent received (WANDB_RUN_ID): exactly one W&B run per trial, and every rank reads the same recipe.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amsd.errors import RunError, UsageError
from amsd.files import write_json
from amsd.sweep.executor import RunLog, Stop, TrialExecutor, Verdict
from amsd.sweep.launchers.processes import ProcessExecutor
from amsd.sweep.plan import Plan, restore_plan
from amsd.sweep.points import make_point
from amsd.sweep.schema import FORMAT, TRAINING, Dimension, Objective
from amsd.sweep.space import active, declared, ordered, values
from amsd.sweep.trial import measure
from amsd.tracking.names import Names

logger = logging.getLogger(__name__)

#: In the sweep's folder: the W&B sweep's path and the plan.
POINTER = "wandb-sweep.json"
SCHEME = "wandb:"


def create_wandb(plan: Plan, folder: Path) -> str:
    """Create the sweep on the W&B server (or find the one of this folder again); returns ENTITY/PROJECT/ID or ID.

    Raises:
        UsageError: no key is set, or the sweep uses what W&B sweeps do not have.
    """
    configuration = wandb_configuration(plan)
    require_key()
    pointer = folder / POINTER
    if pointer.is_file():
        known = json.loads(pointer.read_text(encoding="utf-8"))
        if known["plan"] != plan.dump():
            raise UsageError(f"{folder} holds another W&B sweep ({known['sweep']}); choose another --output")
        return str(known["sweep"])
    import wandb

    names = Names.of(plan.recipe.tracking)
    try:
        sweep_id = wandb.sweep(configuration, project=names.project, entity=names.entity)
    except wandb.Error as error:
        raise UsageError(f"W&B did not create the sweep {plan.sweep.name}: {error}") from None
    path = "/".join(part for part in (names.entity, names.project, sweep_id) if part)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(pointer, {"format": FORMAT, "sweep": path, "plan": plan.dump()})
    return path


def run_wandb(plan: Plan, folder: Path, workers: int) -> None:
    """Create the sweep and run `workers` agents until the server has no more points.

    Raises:
        UsageError: as `create_wandb`.
        RunError: every agent died.
    """
    path = create_wandb(plan, folder)
    if workers == 1:
        run_agent(path, plan, folder, ProcessExecutor(plan.sweep.execution))
        return
    from amsd.sweep.launchers.local import run_agents

    run_agents(f"{SCHEME}{path}", folder.resolve(), workers, plan.sweep.execution.processes)


def join(source: str, folder: Path) -> None:
    """Run one more agent: `source` is `wandb:ENTITY/PROJECT/ID`, `folder` the sweep's folder.

    Raises:
        UsageError: the folder has no such sweep, or no key is set.
    """
    require_key()
    try:
        data = json.loads((folder / POINTER).read_text(encoding="utf-8"))["plan"]
    except (OSError, ValueError, KeyError):
        raise UsageError(f"{folder}: {POINTER} is missing or damaged; --directory names the sweep's folder") from None
    plan = restore_plan(data, str(folder / POINTER))
    run_agent(source.removeprefix(SCHEME), plan, folder.resolve(), ProcessExecutor(plan.sweep.execution))


def run_agent(path: str, plan: Plan, folder: Path, executor: TrialExecutor, count: int | None = None) -> None:
    """W&B's own agent, which calls us once per point; `count` limits how often."""
    import wandb

    folder = folder.resolve()
    stop = Stop()
    failures: list[str] = []

    def trial() -> None:
        try:
            run_trial(plan, folder, executor, stop, os.environ)
        except RunError as error:
            failures.append(str(error))
            logger.warning("W&B run %s failed: %s", os.environ.get("WANDB_RUN_ID"), error)
            raise

    parts = path.split("/")
    entity, project = parts[0] if len(parts) == 3 else None, parts[-2] if len(parts) > 1 else None
    wandb.agent(parts[-1], function=trial, entity=entity, project=project, count=count)
    limit = plan.sweep.execution.stop_after_failures
    if len(failures) >= limit and len(set(failures)) == 1:
        raise RunError(f"sweep {plan.sweep.name}: {len(failures)} trials failed alike:\n{failures[-1]}")


def run_trial(
    plan: Plan, folder: Path, executor: TrialExecutor, stop: Stop, environment: Mapping[str, str]
) -> dict[str, float]:
    """Run the point that the agent has put into the environment; returns the objective.

    Raises:
        RunError: the run failed, or has not measured the objective.
    """
    import yaml

    run_id = environment["WANDB_RUN_ID"]
    if not re.fullmatch(r"[A-Za-z0-9][\w-]{0,127}", run_id):  # it names a folder
        raise RunError(f"W&B names the run {run_id!r}; only letters, digits, - and _ are taken")
    given = yaml.safe_load(Path(environment["WANDB_SWEEP_PARAM_PATH"]).read_text(encoding="utf-8"))
    chosen = {key: entry["value"] for key, entry in given.items() if isinstance(entry, dict) and "value" in entry}
    seed = chosen.pop("training.seed", plan.sweep.seeds[0])
    if isinstance(seed, bool) or seed not in plan.sweep.seeds:
        raise RunError(f"W&B chose training.seed = {seed!r}, but the sweep's seeds are {list(plan.sweep.seeds)}")
    single = Plan(plan.sweep.model_copy(update={"seeds": (seed,)}), plan.tree)
    point = make_point(single, folder, f"wandb-{run_id}", _params(plan, chosen))
    ended = executor.run(point.jobs[0], _watch(stop))
    if ended.status != "complete":
        raise RunError(ended.error or f"run {run_id} was {ended.status}")
    return measure(plan.sweep, ended.log)


def _params(plan: Plan, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What W&B chose, without dimensions whose conditions do not hold (W&B draws every one).

    Raises:
        RunError: a key or a value is not one that the sweep declares.
    """
    search = plan.sweep.search
    if unknown := sorted(chosen.keys() - search.keys()):
        raise RunError(f"W&B chose {', '.join(unknown)}, which sweep {plan.sweep.name} does not search")
    params: dict[str, Any] = {}
    for name in ordered(search):
        if name in chosen and active(search[name], params):
            try:
                params[name] = declared(search[name], chosen[name])
            except ValueError as error:
                raise RunError(f"W&B chose a value for {name} that the sweep does not declare: {error}") from None
    return params


def _watch(stop: Stop) -> Any:
    def verdict(_: RunLog) -> Verdict:
        return Verdict.RELEASE if stop.requested else Verdict.CONTINUE

    return verdict


def require_key() -> None:
    """Raise unless a W&B key is at hand; W&B itself would ask on the terminal or fail late.

    Raises:
        UsageError: saying what to set.
    """
    import wandb

    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        raise UsageError(f"--backend wandb needs the W&B server, but WANDB_MODE is {os.environ['WANDB_MODE']}. "
                         "Unset it, or use --backend optuna, which works offline.")  # fmt: skip
    if not wandb.login(prompt=False, verify=False):
        raise UsageError("--backend wandb needs a W&B key: set WANDB_API_KEY or run `wandb login` "
                         "(WANDB_BASE_URL for an own server), or use --backend optuna, which needs none.")  # fmt: skip


def wandb_configuration(plan: Plan) -> dict[str, Any]:
    """The same search as a W&B sweep.

    Raises:
        UsageError: it uses what W&B sweeps do not have (several objectives, constraints).
    """
    sweep = plan.sweep
    if len(sweep.objective) > 1 or sweep.constraint:
        raise UsageError(
            f"sweep {sweep.name}: W&B sweeps have one objective and no constraints, but this one has "
            f"{len(sweep.objective)} and {len(sweep.constraint)}. Use --backend optuna."
        )
    if sweep.budget.seconds is not None or sweep.budget.unet_evaluations is not None:
        raise UsageError(f"sweep {sweep.name}: W&B sweeps know only budget.trials. Use --backend optuna.")
    objective = sweep.objective[0]
    method = {"grid": "grid", "random": "random", "qmc": "random"}.get(sweep.sampler.name, "bayes")
    configuration: dict[str, Any] = {
        "name": sweep.name,
        "description": sweep.description,
        "method": method,
        "metric": {"name": metric_name(objective), "goal": objective.direction},
        "parameters": {name: _parameter(dim, method) for name, dim in sweep.search.items()},
    }
    if len(sweep.seeds) > 1:  # every seed is a run of its own; W&B's grouping shows their mean
        configuration["parameters"]["training.seed"] = {"values": list(sweep.seeds)}
    if sweep.budget.trials is not None:
        configuration["run_cap"] = sweep.budget.trials
    if sweep.pruner.name != "none":
        configuration["early_terminate"] = {"type": "hyperband", "min_iter": max(1, sweep.pruner.startup_trials)}
    return configuration


def metric_name(objective: Objective) -> str:
    """Name under which W&B finds the objective in a run's summary."""
    if objective.metric.startswith(TRAINING):
        return objective.metric.removeprefix(TRAINING)
    return f"eval/{objective.metric}" + ("" if objective.value == "mean" else f"/{objective.value}")


def as_wandb_yaml(plan: Plan) -> str:
    """`wandb_configuration` as YAML, for `wandb sweep FILE`."""
    import yaml

    text: str = yaml.safe_dump(wandb_configuration(plan), sort_keys=False, allow_unicode=True)
    return text


def _parameter(dimension: Dimension, method: str) -> dict[str, Any]:
    if dimension.low is None or dimension.high is None or method == "grid":
        return {"values": values(dimension)}
    low, high = dimension.low, dimension.high
    if dimension.is_int:
        name = "q_log_uniform_values" if dimension.log else "int_uniform"
        return {"distribution": name, "min": int(low), "max": int(high)} if not dimension.step else {
            "values": values(dimension)
        }  # fmt: skip
    if dimension.step is not None:
        return {"distribution": "q_uniform", "min": float(low), "max": float(high), "q": float(dimension.step)}
    name = "log_uniform_values" if dimension.log else "uniform"
    return {"distribution": name, "min": float(low), "max": float(high)}
