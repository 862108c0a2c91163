"""`python -m embedded`: train one of the embedded models."""

import logging

import typer

from embedded.smoothness import smoothness
from embedded.train_flow import flow
from embedded.train_unet import unet

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
app.command()(unet)
app.command()(flow)
app.command()(smoothness)


@app.callback()
def _log() -> None:
    """Train one of the embedded models from nothing."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")


if __name__ == "__main__":
    app()
