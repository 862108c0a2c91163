"""A user's own reward: `python:MODULE:FUNCTION`, or `python:FILE.py:FUNCTION`.

The target is a function `(images, prompts, **options) -> scores`, or a `torch.nn.Module` class whose constructor takes
the options and whose forward takes `(images, prompts)`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import torch
from torch import Tensor, nn

from amsd.errors import UsageError
from amsd.files import sha256
from amsd.recipe.schema import CodeFile
from amsd.rewards.code import PREFIX, Target
from amsd.rewards.networks import fingerprint, freeze, full_precision
from amsd.rewards.preprocess import check_pairs


class FunctionReward:
    """A function (or network class) of the user's as a reward; images come in [0, 1], prompts as strings.

    Its version is the hash of its source file, and of the weights where it is a network: what the file imports is not
    seen.

    Args:
        target: `MODULE:FUNCTION` or `FILE.py:FUNCTION`, relative to the working directory or installed.
        code: where files and modules were recorded to lie (`recipe.code`); else they are looked for as Python does.
        **options: keyword arguments of the function, or of the network's constructor.

    Raises:
        UsageError: the target cannot be found or is of another kind.
    """

    def __init__(self, target: str, code: Mapping[str, CodeFile] | None = None, /, **options: Any) -> None:
        self.name = f"{PREFIX}{target}"
        named = Target.of(self.name)
        module_name, attribute = named.module, named.attribute
        module = _import(named, named.locate(code or {}))
        if not hasattr(module, attribute):
            raise UsageError(f"reward {self.name!r}: {module_name} has nothing called {attribute!r}")
        found = getattr(module, attribute)
        self._network: nn.Module | None = None
        self._function: Callable[..., Any]
        if isinstance(found, type) and issubclass(found, nn.Module):
            self._network = found(**options)
            freeze(self._network)
            self._function = self._network
        elif inspect.isfunction(found):
            self._function = partial(found, **options)
        else:
            raise UsageError(f"reward {self.name!r} is a {type(found).__name__}; expected a function or a Module class")
        self.version = _version(found, self._network, options)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) of images (B, 3, H, W) in [0, 1].

        Raises:
            UsageError: the function returned something else than one floating-point score per image, or lost the
                gradient. What the function itself raises gets a note that names this reward.
        """
        check_pairs(images, prompts)
        scores = self._scores(images, prompts)
        if not isinstance(scores, Tensor) or scores.shape != (len(images),) or not scores.is_floating_point():
            raise UsageError(
                f"reward {self.name!r} returned {_described(scores)}; "
                f"expected a floating-point tensor of shape ({len(images)},), one score per image"
            )
        if images.requires_grad and torch.is_grad_enabled() and not scores.requires_grad:
            raise UsageError(
                f"reward {self.name!r} has no gradient with respect to the images: it must compute on them with torch, "
                "without .detach(), .numpy() or no_grad. To only watch it, name it in evaluation.metrics."
            )
        return scores.float()

    def _scores(self, images: Tensor, prompts: Sequence[str]) -> object:
        try:
            with full_precision(images.device):
                return self._function(images.float(), list(prompts))
        except Exception as error:  # a note, not another error: out of memory must stay what it is
            error.add_note(f"This happened in the reward {self.name!r}{_place(error)}.")
            raise

    def to(self, device: torch.device | str) -> Self:
        """Move the weights of a network; a function computes where its images are."""
        if self._network is not None:
            self._network.to(device)
        return self

    def truncated(self, prompts: Sequence[str]) -> int:
        """A function is given whole prompts, so none is counted as cut."""
        return 0


def _import(target: Target, path: Path) -> ModuleType:
    """Run the module that lies at `path`.

    Raises:
        UsageError: it cannot be imported; the reason is named.
    """
    try:
        if target.is_file:
            return _import_file(path, target.name)
        parts = target.module.split(".")
        root = path.parents[len(parts) if path.name == "__init__.py" else len(parts) - 1]
        with _first_on_path(root):
            return importlib.import_module(target.module)
    except ModuleNotFoundError as error:
        raise UsageError(f"reward {target.name!r}: {path} imports {error.name!r}, which is not installed") from error
    except UsageError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's module does while it is imported
        raise UsageError(
            f"reward {target.name!r}: {path} cannot be imported: {type(error).__name__}: {error}{_place(error)}"
        ) from error


def _import_file(path: Path, reward: str) -> ModuleType:
    name = f"amsd_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"reward {reward!r}: {str(path)!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _version(found: Any, network: nn.Module | None, options: dict[str, Any]) -> str:
    source = inspect.getsourcefile(found)
    code = sha256(Path(source)) if source else ""
    weights = fingerprint(network) if network is not None else ""
    given = repr(sorted(options.items()))
    return hashlib.sha256(f"{code} {weights} {given}".encode()).hexdigest()[:12]


def _place(error: BaseException) -> str:
    """Where the user's code was when it failed: the last frame that is neither ours nor an installed package's."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    own = [frame for frame in frames if "site-packages" not in frame.filename]
    return f", {own[-1].filename}, line {own[-1].lineno}" if own else ""


def _described(scores: object) -> str:
    if isinstance(scores, Tensor):
        return f"a tensor of shape {tuple(scores.shape)} and type {scores.dtype}"
    return f"a {type(scores).__name__}"
