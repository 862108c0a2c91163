"""What leaves this machine names no place on it: no home folder, no user, no absolute path.

Exports, model cards, reports and what trackers upload go through here; a run directory, which stays, does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amsd.recipe import Recipe

_PYTHON = "python:"
#: A whole value that is a path of this machine: absolute (also on Windows), in somebody's home, or out of a folder.
_PLACE = re.compile(r"/|~[\w.-]*(?:[/\\]|$)|[A-Za-z]:[\\/]|\\\\|file:|\.\.(?:[/\\]|$)")
#: An absolute path of at least two parts inside a sentence; what follows a host's name in a URL is none.
_INSIDE = re.compile(
    r"(?<![\w/.~\\-])(?:~[\w.-]*/|/|[A-Za-z]:\\|\\\\)(?:[^\s/\\'\"`<>|;:,()\[\]{}]+[/\\])*[^\s/\\'\"`<>|;:,()\[\]{}]+"
)
_CODE = re.compile(r"python:(?:/|~|[A-Za-z]:\\|\.\.[/\\])[^\"<>|:]*?(?=[^/\\\"<>|:]+\.py:)")
_HOME = re.compile(r"~[\w.-]*|(?:file:/*)?(?:[A-Za-z]:)?[/\\](?:home|Users)[/\\][^/\\]+")


def without_places(node: Any, roots: Sequence[Path] = ()) -> Any:
    """Plain data in which a path of this machine is its last name alone; names of tables count too.

    `roots` are folders that are known to occur inside texts: a path below one of them is written relative to it.
    """
    if isinstance(node, dict):
        return {without_places(name, roots): without_places(value, roots) for name, value in node.items()}
    if isinstance(node, list | tuple):
        return [without_places(value, roots) for value in node]
    return in_value(node, roots) if isinstance(node, str) else node


def in_value(value: str, roots: Sequence[Path] = ()) -> str:
    """A text that may be a path as a whole, as values of a recipe are (`python:FILE.py:FUNCTION` included)."""
    prefix = _PYTHON if value.startswith(_PYTHON) else ""
    rest = value.removeprefix(prefix)
    if _PLACE.match(rest):
        return prefix + _name_of(rest)
    return in_text(value, roots)


def in_text(text: str, roots: Sequence[Path] = ()) -> str:
    """A sentence: paths below one of `roots`, the home folder or the working directory become relative to it."""
    text = of_code(text)
    for root in _known(roots):
        text = text.replace(f"{root}/", "").replace(root, _name_of(root))
    return _INSIDE.sub(_last, text)


def of_code(text: str) -> str:
    """Names of scorers inside a text or a page (`python:/home/me/mine.py:warm`) without their folders."""
    return _CODE.sub(_PYTHON, text)


def published(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data for other machines; where the run and its code lay is left out."""
    tree = recipe.model_dump(mode="json", exclude={"origin", "code"})
    return dict(without_places(tree, places_of(recipe)))


def published_toml(recipe: Recipe) -> str:
    """The same as TOML: a recipe for other machines, to which their user adds what lay only on this one."""
    import tomli_w

    from amsd.recipe.load import FORMAT

    tree = recipe.model_dump(mode="json", exclude={"origin", "code"}, exclude_none=True)
    return tomli_w.dumps({"format": FORMAT, **without_places(tree, places_of(recipe))})


def places_of(recipe: Recipe) -> tuple[Path, ...]:
    """The folders and files of this machine that a recipe names, and the folders that these lie in."""
    found = [Path(text) for text in _texts(recipe.model_dump(mode="json")) if _is_absolute(text)]
    return (*found, *(path.parent for path in found))


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from _texts(list(node.items()))
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _texts(value)
    elif isinstance(node, str):
        yield node.removeprefix(_PYTHON).rpartition(".py:")[0] + ".py" if ".py:" in node else node


def _is_absolute(text: str) -> bool:
    """Whether a text is a path and not, say, a prompt that begins with a slash."""
    return text.startswith("/") and text.count("/") > 1 and "\n" not in text


def _known(roots: Sequence[Path]) -> list[str]:
    """The folders as they may be written, the longest first; never the root of the file system."""
    found: set[Path] = set()
    for root in (*roots, _home(), _working_directory()):
        if root is not None:
            found |= {root.absolute(), root.resolve()}
    return sorted((str(root) for root in found if len(root.parts) > 1), key=len, reverse=True)


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:  # the user has none
        return None


def _working_directory() -> Path | None:
    try:
        return Path.cwd()
    except OSError:  # it was removed
        return None


def _last(found: re.Match[str]) -> str:
    whole = found[0]
    is_path = len(re.findall(r"[^/\\]+", whole)) > 1 or whole[0] != "/"  # `/imagine` is no path
    return _name_of(whole) if is_path else whole


def _name_of(path: str) -> str:
    """The last name of a path; a home folder's last name is its user's and is not told."""
    bare = path.rstrip("/\\")
    return "home" if _HOME.fullmatch(bare) or bare == str(_home()) else re.split(r"[/\\]", bare)[-1] or "path"
