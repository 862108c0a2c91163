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
    base: str = ""
    """`module:class` that the class of a package is derived from; empty where anything that can be called will do."""
    members: tuple[str, ...] = ()
    """What the class of a package must have besides the abstract methods of `base`."""

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

    def check(self, names: Iterable[str], where: str = "") -> None:
        """As `require`; what packages bring is imported and looked at too, before anything is begun.

        Raises:
            UsageError: a name is unknown, or what a package brings is broken or lacks something.
        """
        names = list(names)
        self.require(names, where)
        for name in names:
            if name not in self.own:
                self.load(name)

    def load(self, name: str) -> Any:
        """What a name stands for, imported now.

        Raises:
            UsageError: the name is unknown, or what a package brings is broken or lacks something.
            ImportError: what amsd's own row needs is not installed.
        """
        self.require([name])
        if name in self.own:
            return resolve_name(self.own[name])
        row = self.rows()[name]
        try:
            found = resolve_name(row)
        except Exception as error:  # somebody else's code
            fault = f"cannot be imported ({type(error).__name__}: {error})"
            raise self.refusal(name, fault) from error
        fault = fault_of(found, resolve_name(self.base) if self.base else None, self.members)
        if fault:
            raise self.refusal(name, fault)
        return found

    def refusal(self, name: str, fault: str) -> UsageError:
        """What is wrong with the thing of a package, and what to do."""
        row = self.rows()[name]
        return UsageError(
            f"{name!r} is {self.kind} of an installed package, and {row} {fault}. Mend or uninstall that package."
        )


def fault_of(found: Any, base: type | None, members: Iterable[str] = ()) -> str:
    """What is wrong with somebody's class for a seam, as the end of a sentence about it; empty if nothing is.

    It is derived from `base`, none of whose abstract methods is left, and has the `members`. Without a base a function
    will do, whose members nobody knows.
    """
    if base is not None and not (isinstance(found, type) and issubclass(found, base)):
        return f"is not a class derived from {base.__module__}.{base.__qualname__} (got {found!r:.200})"
    if not callable(found):
        return f"is neither a class nor a function (got {found!r:.200})"
    if not isinstance(found, type):
        return ""
    lacking = {*getattr(found, "__abstractmethods__", ()), *(name for name in members if not hasattr(found, name))}
    return f"has no {' and no '.join(sorted(lacking))} (docs/extending.md)" if lacking else ""
