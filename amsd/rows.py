"""Batches as frozen dataclasses: every field has one row per item, and what a batch can do follows from its fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, Self

import torch
from torch import Tensor


class Rows:
    """Base of a frozen dataclass whose fields are all batches of the same length.

    A field is a tensor (B, ...), a tuple of B, a mapping from names to such fields, another `Rows`, or None.
    """

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Batches one after another; at least one, all with the same names in their mappings."""
        return cls(**{name: _cat([getattr(part, name) for part in parts]) for name in _names(cls)})

    def rows(self, index: Tensor | slice) -> Self:
        """The given rows of the batch."""
        return self._changed(lambda value: select(value, index))

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Apply `change` to every tensor."""
        return self._changed(lambda value: _mapped(value, change))

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor by its name; those inside a field are called `field/name`."""
        for name in _names(type(self)):
            yield from _tensors(name, getattr(self, name))

    def _changed(self, change: Callable[[Any], Any]) -> Self:
        return type(self)(**{name: change(getattr(self, name)) for name in _names(type(self))})


def _names(cls: Any) -> list[str]:
    return [field.name for field in fields(cls)]


def _cat(parts: Sequence[Any]) -> Any:
    first = parts[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, Rows):
        return type(first).cat(parts)
    if isinstance(first, Mapping):
        return {name: _cat([part[name] for part in parts]) for name in first}
    return tuple(value for part in parts for value in part)


def select(value: Any, index: Tensor | slice) -> Any:
    """The given rows of a field."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return value[on_device(index, value.device) if isinstance(index, Tensor) else index]
    if isinstance(value, Rows):
        return value.rows(index)
    if isinstance(value, Mapping):
        return {name: select(entry, index) for name, entry in value.items()}
    return value[index] if isinstance(index, slice) else tuple(value[row] for row in index.tolist())


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the CPU on `device`, without waiting for what the device still has to do."""
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Rows):
        return value.map(change)
    if isinstance(value, Mapping):
        return {name: _mapped(entry, change) for name, entry in value.items()}
    return value


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Rows):
        for inner, tensor in value.tensors():
            yield f"{name}/{inner}", tensor
    elif isinstance(value, Mapping):
        for inner, entry in value.items():
            yield from _tensors(f"{name}/{inner}", entry)
