"""Whether a W&B run can be online: it needs a key and a server that answers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from amsd.network import unreachable

Mode = Literal["online", "offline", "disabled"]


@dataclass(frozen=True)
class Connection:
    """How W&B is run, and why not online although that was possible or wanted (None if nothing needs saying)."""

    mode: Mode
    reason: str | None = None


def connect(wanted: Literal["auto", "online", "offline", "disabled"]) -> Connection:
    """Settle the mode. Never asks for a key and never waits for longer than a few seconds.

    `auto` obeys the environment variable WANDB_MODE if it is set. `online` without a key or a network becomes
    `offline` like `auto` does, so that nothing is lost, and gives the reason.

    Raises:
        wandb.Error, ValueError: W&B's own configuration is broken.
    """
    from_environment = os.environ.get("WANDB_MODE", "")
    if wanted == "auto" and from_environment in ("offline", "dryrun"):
        return Connection("offline", f"WANDB_MODE is {from_environment}")
    if wanted == "auto" and from_environment == "disabled":
        return Connection("disabled", "WANDB_MODE is disabled")
    if wanted in ("offline", "disabled"):
        return Connection(wanted)
    import wandb

    if not wandb.login(prompt=False, verify=False):
        return Connection("offline", "no W&B key is configured (run `wandb login` or set WANDB_API_KEY)")
    address = wandb.setup().settings.base_url
    problem = unreachable(address)
    return Connection("online") if problem is None else Connection("offline", f"{address} is unreachable ({problem})")
