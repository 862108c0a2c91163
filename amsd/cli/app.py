"""The `amsd` application: its commands, its errors and its exit codes."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Annotated

import typer

from amsd import __version__
from amsd.cli import diagnose, evaluate, export, recipe, report, sample, sweep, train
from amsd.errors import AmsdError

app = typer.Typer(
    name="amsd",
    help="Fine-tune Stable Diffusion on a differentiable reward by Adjoint Matching.",
    epilog="Start with: amsd train shapes",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("sample")(sample.sample)
app.command("export")(export.export)
app.command("diagnose")(diagnose.diagnose)
app.command("report")(report.report)
app.add_typer(recipe.app, name="recipe")
app.add_typer(sweep.app, name="sweep")

INTERRUPTED = 130


#: What the libraries below us would say on every start; the user's own settings win.
_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_SILENT": "true",
}


def quiet_libraries(debug: bool) -> None:
    """Show amsd's own messages, and of the libraries only errors (everything with `--debug`)."""
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(name)s: %(message)s")
    if debug:
        return
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in ("transformers", "diffusers", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"amsd {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", envvar="AMSD_DEBUG", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options before the command."""
    if debug:
        os.environ["AMSD_DEBUG"] = "1"
    quiet_libraries(debug)


def main() -> None:
    """Run the command line: exit 0 success, 1 run failed, 2 usage or recipe error, 130 interrupted."""
    try:
        app()
    except AmsdError as error:
        _fail(error, error.exit_code)
    except KeyboardInterrupt:
        typer.secho("Interrupted. Continue with the same command and --resume.", err=True)
        sys.exit(INTERRUPTED)
    except Exception as error:  # the last resort: one message for the user, the traceback for us
        logging.getLogger("amsd").debug("unexpected error", exc_info=True)
        if _debug():
            raise
        typer.secho(f"Error: {type(error).__name__}: {error}\n(amsd --debug ... shows the traceback)", err=True)
        sys.exit(1)


def _fail(error: AmsdError, code: int) -> None:
    if _debug():
        raise error
    # Under several processes every one of them fails alike: say it once.
    if os.environ.get("RANK", "0") == "0":
        typer.secho(f"Error: {error}", err=True)
    sys.exit(code)


def _debug() -> bool:
    return os.environ.get("AMSD_DEBUG", "") not in ("", "0")
