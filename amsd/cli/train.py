"""`amsd train`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from amsd.cli.options import AllowCodeOption, RecipeArgument, SetOption
from amsd.cli.outputs import as_argument, path_option, require_folder
from amsd.ends import Ends, keeping

if TYPE_CHECKING:
    from amsd.experiment.train import Finished
    from amsd.recipe import Recipe


def train(
    recipe: RecipeArgument,
    assignments: SetOption = None,
    output: Annotated[
        Path | None, path_option("--output", "-o", help="Run directory [default: runs/NAME-SETTINGS-IDENTITY].")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a run from its newest complete checkpoint.")
    ] = False,
    processes: Annotated[int, typer.Option(min=1, max=4096, help="Processes on this machine, one per GPU.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and its cost; train nothing.")] = False,
    allow_code: AllowCodeOption = False,
) -> None:
    """Fine-tune a model as a recipe says. Each checkpoint is evaluated automatically."""
    from amsd.cli.launch import in_sweep, launched, relaunch, relaunched, require_one_task
    from amsd.cli.source import require_consent
    from amsd.occupied import require_place
    from amsd.recipe import load_recipe
    from amsd.run_directory import RunDirectory

    require_one_task()
    resolved = load_recipe(recipe, assignments or [])
    run = output or _place(resolved, recipe, resume, several=launched())
    require_folder(run, "--output")
    require_place(run, "--output", "run", within_sweep=in_sweep())
    if not resume and not relaunched():  # at once, before torch is imported; the processes of one command check again
        RunDirectory(run).require_unused()
    require_consent(resolved, run if resume else None, allow_code, file=recipe)
    if dry_run:
        from amsd.cli.plan import show_plan

        show_plan(resolved, processes, run)
        return
    arguments = ["train", recipe, "--output", str(run), *(["--allow-code"] if allow_code else [])]
    for assignment in assignments or []:
        arguments += ["--set", assignment]
    again = shlex.join(["amsd", *arguments, *(["--processes", str(processes)] if processes > 1 else []), "--resume"])
    with keeping(lambda: _kept(run, again)):
        if processes > 1 and not launched():
            raise typer.Exit(relaunch([*arguments, *(["--resume"] if resume else [])], processes))
        from amsd.tracking.progress import loading

        with Ends() as ends:  # before torch is imported, which takes seconds
            with loading():
                from amsd.experiment.train import train as run_training

            finished = run_training(resolved, run, resume=resume, ends=ends)
    if finished.main:
        _summarize(finished)


def _place(recipe: Recipe, source: str, resume: bool, several: bool) -> Path:
    """Where a run without --output goes: a folder of its own, or with --resume the newest of its name.

    The processes of a launcher do not look for a free folder: each would find another one.
    """
    from amsd.run_directory import default_output, newest, vacant

    named = default_output(recipe, Path(source).stem)
    if several:
        return named
    return newest(named) if resume else vacant(named)


def _kept(run: Path, again: str) -> str:
    """Where an interrupted run stands, and how it goes on."""
    from amsd.run_directory import RunDirectory

    newest = RunDirectory(run).pointer("latest")
    kept = "There is no checkpoint yet" if newest is None else f"Its newest checkpoint is {newest.name}"
    return f"{kept}. Continue with: {again}"


def _summarize(finished: Finished) -> None:
    """Say what the run achieved and where everything lies."""
    from rich.console import Console

    from amsd.evaluation.table import results_table

    console = Console(markup=False)
    if finished.results:
        console.print(results_table(finished.results, title="Last checkpoint against the base model"))
    path = finished.run.path
    lines = [f"Run: {path}"]
    for name in ("best", "latest"):
        checkpoint = finished.run.pointer(name)
        if checkpoint is not None:
            lines.append(f"{name.capitalize()}: {checkpoint}")
    if (path / "comparison.png").is_file():
        lines.append(f"Pictures: {path / 'comparison.png'} (base above fine-tuned)")
    lines.append(f"Report: amsd report {as_argument(path)}")
    for line in lines:  # a path may hold what rich reads as markup
        console.print(line, highlight=False, soft_wrap=True)
