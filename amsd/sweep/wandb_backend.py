"""`--backend wandb`: the W&B server chooses the points, its agents run them with the same code path.

The agent only reads the parameters it was given. The run itself is opened by the main process of `amsd train`, under
the id that the agent received (WANDB_RUN_ID): exactly one W&B run per trial, and every rank reads the same recipe.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from amsd.errors import RunError, UsageError
from amsd.files import write_json
from amsd.reading import parsed, parsed_object
from amsd.sweep.export import wandb_configuration
from amsd.sweep.jobs import RunLog, Stop, TrialExecutor, Verdict, measure, on_signals
from amsd.sweep.launchers.processes import ProcessExecutor
from amsd.sweep.load import restore_plan
from amsd.sweep.schema import FORMAT, SweepPlan
from amsd.sweep.search import Dimension, active, declared, ordered
from amsd.sweep.trial import make_point
from amsd.tracking.names import Names

logger = logging.getLogger(__name__)

#: In the sweep's folder: the W&B sweep's path and the plan.
POINTER = "wandb-sweep.json"
SCHEME = "wandb:"


def create_wandb(plan: SweepPlan, folder: Path) -> str:
    """Create the sweep on the W&B server (or find the one of this folder again); returns ENTITY/PROJECT/ID or ID.

    Raises:
        UsageError: no key is set, or the sweep uses what W&B sweeps do not have.
    """
    configuration = wandb_configuration(plan)
    require_key()
    pointer = folder / POINTER
    if pointer.is_file():
        sweep, earlier = _pointed(folder)
        if earlier != plan.dump():
            raise UsageError(f"{folder} holds another W&B sweep ({sweep}); choose another --output")
        return sweep
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


def run_wandb(plan: SweepPlan, folder: Path, workers: int) -> bool:
    """Create the sweep and run `workers` agents until the server has no more points, or a signal ends them (True).

    Raises:
        UsageError: as `create_wandb`.
        RunError: every agent died.
    """
    path = create_wandb(plan, folder)
    if workers == 1:
        return run_agent(path, plan, folder, ProcessExecutor(plan.sweep.execution))
    from amsd.sweep.launchers.local import gpus_per_trial, run_agents

    return run_agents(f"{SCHEME}{path}", folder.resolve(), workers, gpus_per_trial(plan.sweep.execution))


def join(source: str, folder: Path) -> bool:
    """Run one more agent of the W&B sweep `wandb:ENTITY/PROJECT/ID` in the sweep's folder; True if a signal ended it.

    Raises:
        UsageError: the folder has no such sweep, or no key is set.
    """
    require_key()
    plan = restore_plan(_pointed(folder)[1], str(folder / POINTER))
    return run_agent(source.removeprefix(SCHEME), plan, folder.resolve(), ProcessExecutor(plan.sweep.execution))


def _pointed(folder: Path) -> tuple[str, Any]:
    """Path of the W&B sweep of a folder, and its plan as plain data.

    Raises:
        UsageError: the folder has none.
    """
    try:
        data = parsed_object((folder / POINTER).read_text(encoding="utf-8"))
        return str(data["sweep"]), data["plan"]
    except (OSError, ValueError, KeyError):
        raise UsageError(f"{folder}: {POINTER} is missing or damaged; --directory names the sweep's folder") from None


def run_agent(path: str, plan: SweepPlan, folder: Path, executor: TrialExecutor) -> bool:
    """W&B's own agent, which calls us once per point. Returns whether it was interrupted.

    SIGINT, SIGTERM or SIGHUP ends the running trial with a checkpoint, and then the agent.
    """
    import wandb

    folder = folder.resolve()
    failures: list[str] = []
    stop, idle = Stop(), threading.Event()
    idle.set()

    def trial() -> None:
        idle.clear()
        try:
            run_trial(plan, folder, executor, stop, os.environ)
        except HandedBack as error:
            logger.warning("%s", error)
        except RunError as error:
            failures.append(str(error))
            logger.warning("W&B run %s failed: %s", os.environ.get("WANDB_RUN_ID"), error)
            raise
        finally:
            idle.set()

    def end_agent() -> None:
        while not over.is_set():
            if stop.requested and idle.wait(0.1):
                os.kill(os.getpid(), signal.SIGINT)  # the second signal: the agent ends where it waits
                return
            stop.wait(0.5)

    over = threading.Event()
    parts = path.split("/")
    entity, project = parts[0] if len(parts) == 3 else None, parts[-2] if len(parts) > 1 else None
    with on_signals(stop):
        threading.Thread(target=end_agent, name="amsd-agent-end", daemon=True).start()
        try:
            wandb.agent(parts[-1], function=trial, entity=entity, project=project)
        except KeyboardInterrupt:
            if not stop.requested:
                raise
        finally:
            over.set()
    limit = plan.sweep.execution.stop_after_failures
    if len(failures) >= limit and len(set(failures)) == 1:
        raise RunError(f"sweep {plan.sweep.name}: {len(failures)} trials failed alike:\n{failures[-1]}")
    return stop.requested


class HandedBack(RunError):
    """A run was told to end and has written a checkpoint: it goes on where it is started again."""

    exit_code = 75


def run_point(text: str, assignments: Sequence[str], folder: Path | None) -> dict[str, float]:
    """Run the point `KEY=VALUE...` that `wandb agent` writes into a command line, of the plan `text` in JSON.

    Raises:
        UsageError: the plan is none, or a value is not one that it declares.
        RunError: as `run_trial`.
    """
    try:
        plan = restore_plan(parsed(text), "--plan")
    except ValueError as error:
        raise UsageError(f"--plan: is not JSON ({error})") from None
    chosen: dict[str, Any] = {}
    for assignment in assignments:
        key, _, value = assignment.partition("=")
        dimension = plan.sweep.search.get(key)
        chosen[key] = _written(dimension, value) if dimension is not None else value
    if "training.seed" in chosen:
        value = str(chosen["training.seed"])
        chosen["training.seed"] = int(value) if value.isascii() and value.isdigit() and len(value) < 20 else value
    stop = Stop()
    run_id = os.environ.get("WANDB_RUN_ID", "alone")
    with on_signals(stop):
        folder = (folder or Path("runs") / f"sweep-{plan.sweep.name}").resolve()
        return _run_chosen(plan, folder, ProcessExecutor(plan.sweep.execution), stop, run_id, chosen)


def _written(dimension: Dimension, text: str) -> Any:
    """A value from the text that W&B's agent makes of it (Python's own)."""
    for choice in dimension.choices or dimension.variants or ():
        if str(choice) == text:
            return choice
    try:
        return float(text)
    except ValueError:
        return text


def run_trial(
    plan: SweepPlan, folder: Path, executor: TrialExecutor, stop: Stop, environment: Mapping[str, str]
) -> dict[str, float]:
    """Run the point that the agent has put into the environment; returns the objective.

    Raises:
        RunError: the run failed, or has not measured the objective.
    """
    import yaml

    try:
        given = yaml.safe_load(Path(environment["WANDB_SWEEP_PARAM_PATH"]).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise RunError(f"W&B's file of parameters cannot be read: {error}") from None
    entries = given.items() if isinstance(given, dict) else ()
    chosen = {str(key): entry["value"] for key, entry in entries if isinstance(entry, dict) and "value" in entry}
    return _run_chosen(plan, folder, executor, stop, environment["WANDB_RUN_ID"], chosen)


def _run_chosen(
    plan: SweepPlan, folder: Path, executor: TrialExecutor, stop: Stop, run_id: str, chosen: dict[str, Any]
) -> dict[str, float]:
    if not re.fullmatch(r"[A-Za-z0-9][\w-]{0,127}", run_id):  # it names a folder
        raise RunError(f"W&B names the run {run_id!r}; amsd takes only letters, digits, - and _")
    seed = chosen.pop("training.seed", plan.sweep.seeds[0])
    if isinstance(seed, bool) or seed not in plan.sweep.seeds:
        raise RunError(f"W&B chose training.seed = {seed!r}, but the sweep's seeds are {list(plan.sweep.seeds)}")
    single = replace(plan, sweep=plan.sweep.model_copy(update={"seeds": (seed,)}))
    point = make_point(single, folder, f"wandb-{run_id}", _params(plan, chosen))
    ended = executor.run(point.jobs[0], _watch(stop))
    if ended.status == "released":
        raise HandedBack(f"Run {run_id} was ended and has kept its checkpoint in {point.jobs[0].run}.")
    if ended.status != "complete":
        raise RunError(ended.error or f"run {run_id} was {ended.status}")
    return measure(plan.sweep, ended.log)


def _params(plan: SweepPlan, chosen: Mapping[str, Any]) -> dict[str, Any]:
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
                         "(WANDB_BASE_URL for your own server), or use --backend optuna without a key.")  # fmt: skip
