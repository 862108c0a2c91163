"""A user's own reward: `python:MODULE:FUNCTION`, or `python:FILE.py:FUNCTION`.

The target is a function `(images, prompts, **options) -> scores`, or a `torch.nn.Module` class whose constructor takes
the options and whose forward takes `(images, prompts)`. Scores may be a tensor, a numpy array or a list of numbers;
only a tensor computed from the images by torch has a gradient.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
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
from amsd.rewards.calling import as_scores, in_float32, place_of, unchanged
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
        images_per_call: at most this many images in a call; with 1 the function may return a number. Unset: all.
        groupwise: each call gets all samples of one prompt's group, and nothing else (see `Term.groupwise`).
        **options: keyword arguments of the function, or of the network's constructor.

    Raises:
        UsageError: the target cannot be found or is of another kind.
    """

    def __init__(
        self,
        target: str,
        code: Mapping[str, CodeFile] | None = None,
        /,
        images_per_call: int | None = None,
        groupwise: bool = False,
        **options: Any,
    ) -> None:
        self._images_per_call = calls_of(images_per_call, groupwise)
        self.name = f"{PREFIX}{target}"
        named = Target.of(self.name)
        module_name, attribute = named.module, named.attribute
        with unchanged():
            module = _import(named, named.locate(code or {}))
        if not hasattr(module, attribute):
            raise UsageError(f"reward {self.name!r}: {module_name} has nothing called {attribute!r}")
        found = getattr(module, attribute)
        self._network: nn.Module | None = None
        self._function: Callable[..., Any]
        if isinstance(found, type) and issubclass(found, nn.Module):
            if found.forward is nn.Module.forward:
                raise UsageError(f"reward {self.name!r}: the class {attribute} has no forward(images, prompts)")
            with unchanged():
                self._network = found(**options)
            freeze(self._network)
            self._function = self._network
        elif inspect.isfunction(found):
            self._function = partial(found, **options)
        else:
            raise UsageError(f"reward {self.name!r} is a {type(found).__name__}; expected a function or a Module class")
        given = {**options, **({"groupwise": True} if groupwise else {})}
        self.version = _version(found, self._network, given)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) of images (B, 3, H, W) in [0, 1].

        Raises:
            WrongScores: the function returned something else than one number per image; and what it raises itself.
        """
        check_pairs(images, prompts)
        size = self._images_per_call or max(1, len(images))
        who, parts = f"reward {self.name!r}", []
        with full_precision(images.device):
            for start in range(0, len(images), size):
                part = images[start : start + size].float()
                with unchanged():
                    found = self._function(part, list(prompts[start : start + size]))
                parts.append(in_float32(as_scores(found, len(part), who), images.device, who))
        return torch.cat(parts) if parts else images.new_zeros(0)

    def to(self, device: torch.device | str) -> Self:
        """Move the weights of a network; a function computes where its images are."""
        if self._network is not None:
            self._network.to(device)
        return self

    def truncated(self, prompts: Sequence[str]) -> int:
        """A function is given whole prompts, so none is counted as cut."""
        return 0


def calls_of(images_per_call: object, groupwise: object) -> int | None:
    """How many images a call gets at most, from the options of the same names; None is any number.

    Raises:
        UsageError: a value is of another kind, or groups would be divided.
    """
    if not isinstance(groupwise, bool):
        raise UsageError(f"option groupwise = {groupwise!r}: must be true or false")
    if images_per_call is None:
        return None
    if isinstance(images_per_call, bool) or not isinstance(images_per_call, int) or images_per_call < 1:
        raise UsageError(f"option images_per_call = {images_per_call!r}: must be a whole number from 1 on")
    if groupwise:
        raise UsageError("options images_per_call and groupwise cannot be used together: a group is never divided")
    return images_per_call


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
            f"reward {target.name!r}: {path} cannot be imported: {type(error).__name__}: {error}{place_of(error)}"
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
