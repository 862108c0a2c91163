"""Commands of amsd in processes that begin as copies of this one, which has imported everything already.

A start then takes a second in place of ten. A copy can be struck at a chosen moment: before or after the n-th call of
a chosen function it kills itself, as a crash of the machine would.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

#: Seconds after which a child that does not end is killed, which counts as a loss.
PATIENCE = 300.0


@dataclass(frozen=True)
class Strike:
    """SIGKILL at the `call`-th call of `target` (`module:name` or `module:class.name`), before it or after it."""

    target: str
    call: int = 1
    after: bool = False

    def __str__(self) -> str:
        return f"{'after' if self.after else 'before'} call {self.call} of {self.target}"

    def arm(self) -> None:
        """Replace the function in this process by one that strikes."""
        module_name, _, path = self.target.partition(":")
        owner: Any = import_module(module_name)
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        original: Callable[..., Any] = getattr(owner, name)
        calls = 0

        def striking(*given: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == self.call and not self.after:
                os.kill(os.getpid(), signal.SIGKILL)
            found = original(*given, **named)
            if calls == self.call:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        setattr(owner, name, striking)


@dataclass
class Child:
    """A command that runs."""

    pid: int
    said_in: Path
    code: int | None = field(default=None, init=False)
    """Exit code, or minus the signal; None while it runs."""

    def poll(self) -> int | None:
        """The exit code if it has ended."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, patience: float = PATIENCE) -> int:
        """Wait for its end; one that does not end is killed and has the code -9."""
        deadline = time.monotonic() + patience
        while self.poll() is None:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.01)
        assert self.code is not None
        return self.code

    def send(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    @property
    def said(self) -> str:
        """What it has written to both streams."""
        return self.said_in.read_text(encoding="utf-8", errors="replace")


def warm_up() -> None:
    """Import what every command needs, once."""
    for name in ("amsd.cli.app", "amsd.experiment.train", "amsd.report.page", "amsd.report.story", "wandb"):
        import_module(name)
    import_module("diffusers").StableDiffusionPipeline  # noqa: B018  # its lazy modules
    import_module("peft")


def amsd(arguments: list[str], said_in: Path, before: Callable[[], None] | None = None) -> Child:
    """Run a command in a copy of this process, which calls `before` first (say, to arm a strike)."""
    sys.stdout.flush()
    sys.stderr.flush()
    said_in.touch()
    pid = os.fork()
    if pid:
        return Child(pid, said_in)
    code = 70
    try:
        _become(arguments, said_in)
        if before is not None:
            before()
        code = _main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _become(arguments: list[str], said_in: Path) -> None:
    os.setsid()  # signals of the terminal are not for it
    handle = os.open(said_in, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # scripts start their background with it ignored,
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and nohup this one
    sys.argv = ["amsd", *arguments]


def _main() -> int:
    from amsd.cli.app import main

    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return 0
