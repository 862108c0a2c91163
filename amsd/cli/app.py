"""The `amsd` application: its commands, its errors and its exit codes."""

from __future__ import annotations

import errno
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from amsd import __version__
from amsd.cli import demo, diagnose, evaluate, export, recipe, report, sample, sweep, train
from amsd.cli.hints import Commands
from amsd.cli.launch import launched, rank, relaunched, report_code
from amsd.ends import AnnouncedEnd, Ends, announced
from amsd.errors import AmsdError, UsageError
from amsd.files import refusal
from amsd.reading import is_shortage, reason_of

app = typer.Typer(
    name="amsd",
    cls=Commands,
    help="Fine-tune Stable Diffusion on a differentiable reward by Adjoint Matching.",
    epilog="Start with: amsd train shapes",
    no_args_is_help=True,
    rich_markup_mode=None,  # Typer's panels load Markdown and syntax highlighting: four times the whole start
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command("train", short_help="Fine-tune a model as a recipe says.")(train.train)
app.command("eval", short_help="Evaluate a checkpoint or the base model.")(evaluate.evaluate)
app.command("sample", short_help="Draw pictures from a checkpoint or the base model.")(sample.sample)
app.command("export", short_help="Write a pipeline that plain diffusers loads.")(export.export)
app.command("demo", short_help="Compare base and fine-tuned model in the browser.")(demo.demo)
app.command("diagnose", short_help="Measure whether a recipe meets the assumptions of the theory.")(diagnose.diagnose)
app.command("report", short_help="Show a run or a sweep as one HTML page.")(report.report)
app.add_typer(recipe.app, name="recipe")
app.add_typer(sweep.app, name="sweep")


#: What the libraries below us would say on every start; the user's own settings win.
_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_SILENT": "true",
}


#: What to do where the operating system refuses.
_REFUSED = "(this user may not read or write there: change its permissions, or name another place)"
#: What to do where memory was short.
_SHORTAGE = (
    "There is not enough memory. Lower optimizer.micro_batch, training.collection_batch, method.buffer.size, "
    "evaluation.batch_size or model.size, or use model.parameterization = 'lora'."
)


def quiet_libraries(debug: bool) -> None:
    """Show amsd's own messages, and of the libraries only errors (everything with `--debug`)."""
    logging.basicConfig(level=logging.DEBUG if debug else logging.ERROR, format="%(name)s: %(message)s")
    if debug:
        return
    logging.getLogger("amsd").setLevel(logging.WARNING)
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Detected pickle protocol")  # amsd says what it cannot read


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


def run(ends: Ends) -> None:
    """Run the command line: exit 0 success, 1 run failed, 2 usage or recipe error, 130 or 75 ended by a signal."""
    try:
        with ends.at_once():
            app()
    except (SystemExit, KeyboardInterrupt) as error:
        end = announced(error) if not isinstance(error, SystemExit) or error.code else None
        if end is None:
            raise
        # Of several processes, the command that launched them says it.
        _end("" if relaunched() else _announcement(end), end.exit_code, everyone=False)
    except AmsdError as error:
        if _debug():
            report_code(error.exit_code)
            raise
        # Every process reads the same command line and recipe; what happens in a run happens to one of them.
        _end(f"Error: {error}", error.exit_code, everyone=not isinstance(error, UsageError))
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM):
            text = _working_folder_is_gone() or refusal(error)
            if text is None or _debug():
                _last_resort(error)
            _end(f"Error: {text}", 1, everyone=True)
        report_code(UsageError.exit_code)
        if _debug():
            raise
        refused = error.errno in (errno.EACCES, errno.EPERM)  # else: no path can be called so
        way_out = f" {_REFUSED}" if refused else ""
        _end(f"Error: {_described(error)}{way_out}", UsageError.exit_code, everyone=False)
    except Exception as error:  # noqa: BLE001
        _last_resort(error)


def _announcement(end: AnnouncedEnd) -> str:
    """What was ended, by which signal, what is left of it and how it goes on."""
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    command = " ".join(["amsd", *words[: 2 if words[:1] in (["recipe"], ["sweep"]) else 1]])
    cause = "Ctrl-C" if end.signal_name == "SIGINT" else end.signal_name
    return f"{cause} has ended {command}. {end.kept or 'Nothing is lost: run the same command again.'}"


def _last_resort(error: Exception) -> NoReturn:
    """One message for the user, the traceback for us."""
    report_code(1)
    if _debug():
        raise error
    if is_shortage(error):
        _end(f"Error: {_SHORTAGE} ({reason_of(error)})", 1, everyone=True)
    _end(f"Error: {_described(error)}\n(amsd --debug ... shows the traceback)", 1, everyone=True)


def _end(text: str, code: int, everyone: bool) -> NoReturn:
    """Say how the command ends, once or by every process, and end it."""
    report_code(code)
    if everyone and launched():
        text = f"[process {rank()}] {text}"
    if text and (everyone or rank() == 0):
        typer.echo(text, err=True)
    # Unwinding a process group whose peers wait for this process can hang: nothing is left to do but to leave.
    if launched():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _described(error: Exception) -> str:
    """An error as a user may read it: the file and the reason for what the operating system refused."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])


def _working_folder_is_gone() -> str:
    try:
        Path.cwd()
    except FileNotFoundError:
        return "The working directory was deleted or moved: cd into another one, or give --output an absolute path."
    return ""


def _debug() -> bool:
    return os.environ.get("AMSD_DEBUG", "") not in ("", "0")
