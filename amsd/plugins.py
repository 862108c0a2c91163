"""Entry points of installed packages: how methods, families, rewards and trackers are added from outside."""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType


def plugins(group: str) -> MappingProxyType[str, EntryPoint]:
    """Entry points of a group, such as `amsd.methods`, by name."""
    return _installed(group, tuple(sys.path))


@cache
def _installed(group: str, path: tuple[str, ...]) -> MappingProxyType[str, EntryPoint]:
    # Reading them opens a file of every installed package, and a start asks about twenty times.
    return MappingProxyType({entry.name: entry for entry in entry_points(group=group)})
