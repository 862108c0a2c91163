"""What it takes to add a thing to amsd, before and after the seams were made: `python benchmarks/seams.py`.

For one example of each kind it counts the other files of `amsd/` whose code names it (names and texts, without comments
and docstrings) and the lines there that do, at two commits: what a stranger has to touch. Then come the lines of the
example's own files, blank ones and comments left out, and those of the packages in docs/extending.md.
"""

from __future__ import annotations

import ast
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "extending.md"


@dataclass(frozen=True)
class Addition:
    """One kind of thing, and an example that both commits have."""

    adds: str
    example: str
    pattern: str
    own: str
    """Pattern of the example's own files."""


SEAMS = (
    Addition(
        "a method", "`buffer-am`", r"^buffer-am$|^BufferAM", r"training/(methods/)?adjoint_matching|recipe/methods/adj"
    ),
    Addition("a model family", "Stable Diffusion XL", r"sdxl|StableDiffusionXL", r"families/stable_diffusion_xl"),
    Addition("a reward", "`laion-aesthetic`", r"aesthetic", r"rewards/aesthetic"),
    Addition("a tracker", "W&B", r"WandbTracker|WandbBackend|tracking\.wandb", r"tracking/wandb"),
    Addition("a launcher", "Slurm", r"slurm", r"sweep/(launchers/)?slurm"),
)


def sources(commit: str) -> dict[str, str]:
    """Python files of amsd at a commit, by path."""
    listed = _git("ls-tree", "-r", "--name-only", commit, "amsd").split()
    return {path: _git("show", f"{commit}:{path}") for path in listed if path.endswith(".py")}


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True).stdout


def naming(source: str, pattern: re.Pattern[str]) -> set[int]:
    """Lines whose names or texts fit the pattern."""
    tree = ast.parse(source)
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=said) | ast.Attribute(attr=said) | ast.keyword(arg=str(said)):
                pass
            case ast.ClassDef(name=said) | ast.alias(name=said):
                pass
            case ast.ImportFrom(module=str(said)):
                pass
            case ast.Constant(value=str(said)) if id(node) not in docs:
                pass
            case _:
                continue
        if pattern.search(said):
            found.add(node.lineno)
    return found


def written(source: str) -> int:
    """Lines of code: no blank lines, comments and docstrings."""
    tree = ast.parse(source)
    docs = [node for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    left_out = {line for node in docs for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    lines = enumerate(source.splitlines(), 1)
    return sum(bool(line.strip()) and line.strip()[0] != "#" and number not in left_out for number, line in lines)


def cell(files: dict[str, str], seam: Addition) -> str:
    """`other files / lines there / own lines`."""
    pattern = re.compile(seam.pattern, re.IGNORECASE)
    own = {path for path in files if re.search(seam.own, path)}
    hits = {path: found for path, source in files.items() if path not in own and (found := naming(source, pattern))}
    lines = sum(len(found) for found in hits.values())
    return f"{len(hits)} / {lines} / {sum(written(files[path]) for path in own) or '–'}"


def main(
    before: Annotated[str, typer.Argument(help="The older commit.")] = "5534572",
    now: Annotated[str, typer.Argument(help="The newer commit.")] = "HEAD",
) -> None:
    """Print the table, in Markdown."""
    older, newer = sources(before), sources(now)
    typer.echo(f"| to add | example | {before} | now |\n|---|---|---|---|")
    for seam in SEAMS:
        typer.echo(f"| {seam.adds} | {seam.example} | {cell(older, seam)} | {cell(newer, seam)} |")
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        typer.echo(f"{written(block)} lines in a package: {block.splitlines()[0]}")


if __name__ == "__main__":
    typer.run(main)
