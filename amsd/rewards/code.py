"""A user's own code as a scorer: which file a `python:` name means, what is wrong with it, and whether it may run.

Nothing is imported here: what came from elsewhere is data until its user has said that it may run.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from amsd.errors import UsageError
from amsd.files import sha256
from amsd.recipe import Recipe
from amsd.recipe.schema import CodeFile
from amsd.rewards.table import has_gradient
from amsd.urls import is_server

PREFIX = "python:"


@dataclass(frozen=True)
class Target:
    """What `python:MODULE:FUNCTION` or `python:FILE.py:FUNCTION` names."""

    name: str
    module: str
    attribute: str

    @classmethod
    def of(cls, name: str) -> Target:
        """Read a scorer's name.

        Raises:
            UsageError: it has another form.
        """
        module, separator, attribute = name.removeprefix(PREFIX).rpartition(":")
        if not separator or not module or not attribute:
            raise UsageError(f"reward {name!r}: expected python:MODULE:FUNCTION or python:FILE.py:FUNCTION")
        return cls(name, module, attribute)

    @property
    def is_file(self) -> bool:
        """Whether a file is named instead of a module."""
        return self.module.endswith(".py")

    def locate(self, code: Mapping[str, CodeFile]) -> Path:
        """The Python file that would run: as recorded where it still is there, else as an import would find it.

        Raises:
            UsageError: there is none.
        """
        recorded = code.get(self.module)
        if recorded is not None and Path(recorded.path).is_file():
            return Path(recorded.path)
        if self.is_file:
            path = Path(self.module).expanduser()
            if not path.is_file():
                raise UsageError(f"reward {self.name!r}: no file {self.module!r}")
            return path.absolute()
        found = next(_places(self.module), None)
        if found is None:
            raise UsageError(
                f"reward {self.name!r}: no module {self.module!r} in the working directory or installed; "
                "a file elsewhere is written python:FILE.py:FUNCTION"
            )
        return found

    def check(self, path: Path) -> None:
        """Read the file without running it.

        Raises:
            UsageError: it is no Python, or nothing in it has the name.
        """
        try:
            tree = ast.parse(path.read_text(encoding="utf-8-sig"))
        except (OSError, SyntaxError, ValueError, RecursionError) as error:
            raise UsageError(f"reward {self.name!r}: {path} is not a Python file that can be read: {error}") from None
        names = set(_defined(tree.body))
        if self.attribute not in names and "*" not in names and "__getattr__" not in names:
            raise UsageError(f"reward {self.name!r}: {path} has nothing called {self.attribute!r}")

    def returns_numbers(self, path: Path) -> bool:
        """Whether the file says that the function's scores have no gradient: by its return type or a decorator."""
        try:
            tree = ast.parse(path.read_text(encoding="utf-8-sig"))
        except (OSError, SyntaxError, ValueError, RecursionError):
            return False  # `check` says what is wrong with it
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name == self.attribute:
                if any(_SWITCH.search(ast.unparse(each)) for each in node.decorator_list):
                    return True
                result = ast.unparse(node.returns) if node.returns is not None else ""
                return bool(_NUMBERS.search(result)) and "Tensor" not in result
        return False


_SWITCH = re.compile(r"\b(no_grad|inference_mode)\b")
_NUMBERS = re.compile(r"\b(float|int|bool|ndarray|NDArray|floating|float32|float64)\b")


def targets(recipe: Recipe) -> list[Target]:
    """The user's own scorers that a recipe trains on or evaluates with."""
    names = [*(term.name for term in recipe.reward), *recipe.evaluation.metrics]
    return [Target.of(name) for name in dict.fromkeys(names) if name.startswith(PREFIX)]


def check_code(recipe: Recipe) -> None:
    """Check every scorer of the user's own, without running it.

    Raises:
        UsageError: see `Target.locate` and `Target.check`.
    """
    for target in targets(recipe):
        target.check(target.locate(recipe.code))


def without_gradient(recipe: Recipe) -> list[str]:
    """Names of the trained rewards that are known to have no gradient; nothing is run to know it."""
    known = {target.name: target for target in targets(recipe)}
    found = []
    for term in recipe.reward:
        target = known.get(term.name)
        if has_gradient(term.name) is False or (target and target.returns_numbers(target.locate(recipe.code))):
            found.append(term.name)
    return found


def servers(recipe: Recipe) -> list[str]:
    """The reward servers that a recipe sends pictures to."""
    return [name for name in dict.fromkeys([*(t.name for t in recipe.reward), *recipe.evaluation.metrics])
            if is_server(name)]  # fmt: skip


def recorded(recipe: Recipe) -> dict[str, CodeFile]:
    """Path and hash of the code that a recipe runs, for the recipe of its run."""
    found = {target.module: target.locate(recipe.code) for target in targets(recipe)}
    return {module: CodeFile(path=str(path), sha256=sha256(path)) for module, path in found.items()}


def require_consent(
    recipe: Recipe,
    record: Mapping[str, CodeFile],
    received: Sequence[Path],
    allowed: bool,
    servers_of_own: bool = False,
) -> None:
    """Refuse code that a received recipe names, unless the user has allowed it or it is shown to be the user's own.

    A file is the user's own if it lies outside the folders that may have been received (the run's, the recipe's), at
    the path and with the content recorded at training.
    A reward server is the user's own if the user wrote the recipe that names it: `servers_of_own` says so.

    Raises:
        UsageError: code or a pickle would run, or pictures would be sent to a server, that nobody has allowed.
    """
    if allowed:
        return
    for target in targets(recipe):
        reason = _doubt(target, target.locate(recipe.code), record.get(target.module), received)
        if reason is not None:
            raise UsageError(
                f"the recipe's scorer {target.name!r} would run {target.locate(recipe.code)}, {reason}. "
                "Read that file, and add --allow-code if it may run."
            )
    for name in () if servers_of_own else servers(recipe):
        raise UsageError(
            f"the recipe would send pictures and prompts to {name}. A recipe that you received may not do that: "
            "add --allow-code if that server is yours."
        )
    for name, options in recipe.scorer_options.items():
        if options.get("trust_pickle"):
            raise UsageError(
                f"the recipe's scorer {name!r} has trust_pickle = true, which lets its weight file run code. "
                "Add --allow-code if it may."
            )


def _doubt(target: Target, path: Path, record: CodeFile | None, received: Sequence[Path]) -> str | None:
    if record is None or record.sha256 is None or not Path(record.path).is_absolute():
        return "and no run recorded that file as yours"
    if Path(record.path) != path:
        return f"but the run was trained with {record.path}"
    if path.parts[1] in ("proc", "dev"):  # the same name is another file for every process
        return "which is not the path of a file"
    if any(path.resolve().is_relative_to(folder.resolve()) for folder in received):
        return "which came with the run"
    if path.resolve().is_relative_to(Path(sysconfig.get_path("stdlib")).resolve()) and "site-packages" not in str(path):
        return "which belongs to Python's own library"
    if sha256(path) != record.sha256:
        return "which has changed since the run was trained"
    return None


def _places(module: str) -> Iterator[Path]:
    """Files that an import of a module may find, the working directory's first; no parent package is imported."""
    parts = module.split(".")
    if not all(part.isidentifier() for part in parts):
        return
    for folder in (Path.cwd(), *map(Path, sys.path)):
        yield from _under(folder, parts)
    try:
        spec = importlib.util.find_spec(parts[0])
    except (ImportError, ValueError):
        return
    if spec is not None and len(parts) == 1 and spec.origin is not None and Path(spec.origin).is_file():
        yield Path(spec.origin)
    for location in (spec.submodule_search_locations or ()) if spec is not None else ():
        yield from _under(Path(location), parts[1:])


def _under(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    if not parts:
        return
    base = folder.joinpath(*parts)
    for candidate in (base.with_name(f"{base.name}.py"), base / "__init__.py"):
        if candidate.is_file():
            yield candidate.absolute()


def _defined(body: Sequence[ast.stmt]) -> Iterator[str]:
    """Names that statements of a module bind, also within `if` and `try`."""
    for statement in body:
        match statement:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                yield from ((alias.asname or alias.name).partition(".")[0] for alias in aliases)
            case ast.Assign() | ast.AnnAssign():
                yield from (node.id for node in ast.walk(statement) if isinstance(node, ast.Name))
            case ast.If() | ast.Try() | ast.With() | ast.For() | ast.While():
                for nested in (part for part in ast.iter_child_nodes(statement) if isinstance(part, ast.stmt)):
                    yield from _defined([nested])
                for handler in getattr(statement, "handlers", ()):
                    yield from _defined(handler.body)
