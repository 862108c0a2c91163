"""`amsd sweep`: search over recipes, join a search, look at what it found."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated

import typer

from amsd.cli.outputs import (
    as_argument,
    hanging,
    path_option,
    place_argument,
    place_option,
    require_file,
    require_folder,
    warn,
)
from amsd.cli.sweep_start import require_backend, say_memory

if TYPE_CHECKING:
    from rich.console import Console

    from amsd.sweep.launchers import Launch
    from amsd.sweep.study import StudyHandle

app = typer.Typer(name="sweep", help="Search over recipes with Optuna or W&B.", no_args_is_help=True)

_Study = Annotated[
    str | None, place_option("--study", metavar="NAME", help="Name of the study, if the storage has several.")
]
_Where = Annotated[str, place_argument("SWEEP", "The sweep's folder, or its storage URL.")]


@app.command("run")
def run(
    sweep: Annotated[str, place_argument("SWEEP", "A sweep file, or the name of a shipped sweep.")],
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the sweep file.")
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Number of trials.")] = None,
    workers: Annotated[
        int, typer.Option(min=1, max=10_000, help="Worker processes on this machine (Slurm: jobs).")
    ] = 1,
    storage: Annotated[
        str | None,
        place_option(
            "--storage", metavar="URL", envvar="AMSD_SWEEP_STORAGE", help="Storage URL [default: SQLite in the folder]."
        ),
    ] = None,
    output: Annotated[
        Path | None, path_option("--output", "-o", help="The sweep's folder [default: runs/sweep-NAME].")
    ] = None,
    backend: Annotated[str, typer.Option(help="optuna or wandb.")] = "optuna",
    launcher: Annotated[str, typer.Option(help="local, slurm or ray.")] = "local",
    ray_address: Annotated[
        str | None,
        place_option(
            metavar="ADDRESS", help="Address of a Ray cluster: auto or HOST:PORT [default: one on this machine]."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the sweep and show its size; run nothing.")] = False,
) -> None:
    """Start a sweep. The same command continues a sweep that was interrupted."""
    from rich.console import Console

    from amsd.occupied import require_place
    from amsd.sweep.checks import require_inputs
    from amsd.sweep.launchers import PREVIEWS, Launch
    from amsd.sweep.load import load_plan

    require_backend(backend, launcher)
    budget = [] if trials is None else [f"budget.trials={trials}"]
    plan = load_plan(sweep, [*(assignments or []), *budget])
    folder = output or Path("runs") / f"sweep-{plan.sweep.name}"
    require_folder(folder, "--output")
    require_place(folder, "--output", "sweep")
    console = Console(markup=False)
    if dry_run:
        from amsd.sweep.checks import memory_lines
        from amsd.sweep.display import outline

        warn(require_inputs(plan, download=False))
        for line in (*outline(plan), *memory_lines(plan)):
            typer.echo(line)
        if launcher in PREVIEWS:
            typer.echo(resolve_name(PREVIEWS[launcher])(plan, folder, workers))
        return
    warn(require_inputs(plan))
    say_memory(plan, launcher)
    if backend == "wandb":
        from amsd.sweep.jobs import exit_code
        from amsd.sweep.wandb_backend import run_wandb

        if run_wandb(plan, folder, workers):
            typer.secho("Interrupted; unfinished runs keep their checkpoints.", err=True)
            raise typer.Exit(exit_code())
    else:
        _run(launcher, Launch(plan, folder, storage, workers, _unseen, ray_address), console)


def _unseen(_: StudyHandle) -> AbstractContextManager[Callable[[], None]]:
    return nullcontext(lambda: None)


def _run(name: str, request: Launch, console: Console) -> None:
    from dataclasses import replace

    from amsd.errors import RunError
    from amsd.sweep.display import following, overview
    from amsd.sweep.jobs import exit_code
    from amsd.sweep.launchers import launch
    from amsd.sweep.results import results_of

    folder = request.folder

    before: list[tuple[int, str]] = []

    def view(handle: StudyHandle) -> AbstractContextManager[Callable[[], None]]:
        before.extend((trial.number, trial.state) for trial in results_of(handle).trials)
        return following(console, lambda: results_of(handle))

    done = launch(name, replace(request, view=view))
    if done.jobs:
        console.print(
            f"Submitted {', '.join(done.jobs)}. Watch with: amsd sweep show {as_argument(folder)}", soft_wrap=True
        )
        return
    results = results_of(done.handle)
    console.print(overview(results))
    if before and before == [(trial.number, trial.state) for trial in results.trials] and not done.interrupted:
        typer.echo("Nothing is left to do: the budget is used up. To go on, raise it, for example with --trials N.")
    if results.best is not None:
        named = as_argument(folder)
        next_steps = f"Report: amsd report {named}\nWinning recipe: amsd sweep best {named} -o best.toml"
        console.print(next_steps, highlight=False, soft_wrap=True)
    if done.interrupted:
        typer.secho("Interrupted; unfinished trials are queued again. Run the same command to continue.", err=True)
        raise typer.Exit(exit_code())
    if results.trials and all(trial.state == "failed" for trial in results.trials):
        raise RunError(f"All {len(results.trials)} trials failed. Each one's log.txt in {folder / 'trials'} says why.")


@app.command("list")
def list_sweeps() -> None:
    """List the sweeps that ship with amsd, and what each one asks."""
    from amsd.recipe.catalog import find, names
    from amsd.recipe.load import read_toml

    shipped = {name: str(read_toml(find(name, kind="sweeps")).get("description", "")) for name in names("sweeps")}
    for name, question in shipped.items():
        typer.echo(hanging(f"{name:{max(map(len, shipped))}}  ", question))


@app.command("worker")
def worker(
    storage: Annotated[
        str, place_option(metavar="SWEEP", envvar="AMSD_SWEEP_STORAGE", help="Storage URL, or the sweep's folder.")
    ],
    study: _Study = None,
    directory: Annotated[
        Path | None, path_option(help="The sweep's folder as this machine sees it [default: as in the study].")
    ] = None,
    sweep: Annotated[
        str | None,
        place_option("--sweep", metavar="SWEEP", help="Your own sweep file, whose command and code may run."),
    ] = None,
    command: Annotated[
        str | None,
        place_option(metavar="COMMAND", help="Command that runs a trial; RECIPE --output DIR [--resume] is appended."),
    ] = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Allow the code and pickles that only the storage names.")
    ] = False,
) -> None:
    """Join a sweep from any machine, and work until no trial is left.

    The storage is only data. Commands and code come from plan.json in --directory, from --sweep or from --command.
    """
    import logging
    import shlex
    import time

    from amsd.sweep.jobs import exit_code
    from amsd.sweep.launchers.local import work
    from amsd.sweep.study import Consent
    from amsd.sweep.wandb_backend import SCHEME, join

    logging.Formatter.converter = time.gmtime  # workers of several machines: one clock
    logging.basicConfig(level=logging.INFO, format="%(asctime)sZ %(levelname)s %(message)s", force=True)
    logging.getLogger("amsd").setLevel(logging.INFO)
    consent = Consent(sweep, tuple(shlex.split(command)) if command else None, allow_code)
    if storage.startswith(SCHEME):
        interrupted = join(storage, directory or Path())
    else:
        interrupted = work(storage, study, directory, consent).interrupted
    if interrupted:
        raise typer.Exit(exit_code())


@app.command("point")
def point(
    values: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="The point.")] = None,
    plan: Annotated[str, typer.Option(help="The sweep as `amsd sweep export` writes it into a W&B file (JSON).")] = "",
    output: Annotated[Path | None, path_option(help="The sweep's folder [default: runs/sweep-NAME].")] = None,
) -> None:
    """Run one point of a sweep, as `wandb agent` does."""
    from amsd.sweep.wandb_backend import run_point

    for label, value in run_point(plan, values or [], output).items():
        typer.echo(f"{label} = {value:.6g}")


@app.command("show")
def show(
    source: _Where,
    study: _Study = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay and refresh until the sweep has ended.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show the trials, the best one and what mattered.

    With several objectives, also the Pareto front. Parameter importance comes with its error, from twelve trials on.
    """
    from rich.console import Console

    from amsd.sweep.display import overview
    from amsd.sweep.results import load_sweep, results_of

    console = Console(markup=False)
    if as_json:
        from amsd.sweep.export import as_data

        console.print_json(data=as_data(load_sweep(source, study)))
        return
    if not watch:
        console.print(overview(load_sweep(source, study)))
        return
    import time

    from rich.live import Live

    from amsd.sweep.study import locate

    handle = locate(source, study)
    with Live(console=console, refresh_per_second=1) as live:
        while True:
            results = results_of(handle)
            live.update(overview(results, rows=30))
            if results.stopped or not any(trial.state in ("queued", "running") for trial in results.trials):
                return
            time.sleep(2)


@app.command("best")
def best(
    source: _Where,
    study: _Study = None,
    output: Annotated[Path | None, path_option("--output", "-o", help="Write the recipe there.")] = None,
    trial: Annotated[int | None, typer.Option(help="Number of another trial, such as one of the Pareto front.")] = None,
) -> None:
    """Print the winning recipe, ready for `amsd train`."""
    from amsd.files import write_text
    from amsd.sweep.export import winning_recipe
    from amsd.sweep.results import load_sweep

    require_file(output, "--output")
    text = winning_recipe(load_sweep(source, study), trial)
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_text(output, text)
        typer.echo(f"{output}: run it with: amsd train {as_argument(output)}")


@app.command("export")
def export(
    sweep: Annotated[str, place_argument("SWEEP", "A sweep file or shipped name (YAML), or a sweep's folder (CSV).")],
    output: Annotated[Path | None, path_option("--output", "-o", help="File [default: standard output].")] = None,
) -> None:
    """Write a W&B sweep (YAML), or the trials as a table (CSV)."""
    from amsd.files import write_text
    from amsd.sweep.export import as_csv, as_wandb_yaml
    from amsd.sweep.load import load_plan
    from amsd.sweep.results import load_sweep
    from amsd.sweep.storage import is_storage

    require_file(output, "--output")
    stored = is_storage(sweep) or Path(sweep).is_dir()
    text = as_csv(load_sweep(sweep)) if stored else as_wandb_yaml(load_plan(sweep))
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_text(output, text)
