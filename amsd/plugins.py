"""Tables of names at the seams: amsd's own rows and the entry points of installed packages, resolved when used."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pkgutil import resolve_name
from types import MappingProxyType
from typing import Any

from amsd.errors import UsageError, nearest


def plugins(group: str) -> MappingProxyType[str, EntryPoint]:
    """Entry points of a group, such as `amsd.methods`, by name."""
    return _installed(group, tuple(sys.path))


@cache
def _installed(group: str, path: tuple[str, ...]) -> MappingProxyType[str, EntryPoint]:
    # Reading them opens a file of every installed package, and a start asks about twenty times.
    return MappingProxyType({entry.name: entry for entry in entry_points(group=group)})


@dataclass(frozen=True)
class Seam:
    """Where things of one kind are found by name."""

    kind: str
    """With its article, for messages: "a tracker"."""
    group: str
    """Group of the entry points."""
    own: Mapping[str, str]
    """Rows of amsd: name to `module:attribute`. A package cannot replace them."""
    former: frozenset[str] = frozenset()
    """Names that are understood and not shown."""
    patterns: tuple[str, ...] = ()
    """Shown beside the names."""

    def rows(self) -> dict[str, str]:
        """Every name with its `module:attribute`; nothing is imported."""
        found = {name: f"{point.module}:{point.attr}" for name, point in plugins(self.group).items()}
        return {**found, **self.own}

    def shown(self) -> list[str]:
        """Names as a user is told them, sorted, and the patterns."""
        return [*sorted(self.rows().keys() - self.former), *self.patterns]

    def require(self, names: Iterable[str], where: str = "") -> None:
        """Check names without importing what stands behind them.

        Raises:
            UsageError: one is unknown; `where` says where it stands.
        """
        known = self.rows()
        for name in names:
            if name not in known:
                raise UsageError(f"{where}{name!r} is not {self.kind}. {nearest(name, self.shown())}")

    def load(self, name: str) -> Any:
        """What a name stands for, imported now.

        Raises:
            UsageError: the name is unknown, or the package that brings it is broken.
            ImportError: what amsd's own row needs is not installed.
        """
        self.require([name])
        if name in self.own:
            return resolve_name(self.own[name])
        row = self.rows()[name]
        try:
            return resolve_name(row)
        except Exception as error:  # somebody else's code
            raise UsageError(
                f"{name!r} is {self.kind} of an installed package, and {row} cannot be imported "
                f"({type(error).__name__}: {error}). Mend or uninstall that package."
            ) from error
