"""Commands and TOML of README and docs, as a reader would copy them."""

from __future__ import annotations

import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^    .*\n|^\n(?=    ))+", re.MULTILINE)
_INLINE = re.compile(r"`(amsd [^`]+)`")
_CONTINUED = re.compile(r"\\\n\s*")
_EXPLANATION = re.compile(r" {3,}(?=[^\"'-]).*$")
_SHELL = ("bash", "sh", "console", "text")


@dataclass(frozen=True)
class Quoted:
    """A piece of a page."""

    page: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"


def blocks(language: str) -> list[Quoted]:
    """Fenced blocks of a language, without their indentation."""
    return [
        Quoted(page.name, textwrap.dedent(body))
        for page in PAGES
        for _, name, body in _FENCE.findall(page.read_text(encoding="utf-8"))
        if name == language
    ]


def indented(page: Path) -> list[str]:
    """Blocks indented by four spaces, outside of fenced blocks."""
    rest = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return [textwrap.dedent(block).strip("\n") + "\n" for block in _INDENTED.findall(rest)]


def toml_blocks() -> list[Quoted]:
    """Fenced TOML, and indented blocks that begin as TOML files do."""
    plain = [
        Quoted(page.name, block) for page in PAGES for block in indented(page) if re.match(r"\[|[a-z]+ = \"", block)
    ]
    return blocks("toml") + plain


def commands() -> list[Quoted]:
    """Lines of shell blocks that call amsd, joined where they continue, without comments, as `amsd ...`."""
    found = []
    for page in PAGES:
        shell = [block.text for language in _SHELL for block in blocks(language) if block.page == page.name]
        for block in [*shell, *indented(page)]:
            for line in _CONTINUED.sub("", block).splitlines():
                called = line.rpartition("&& ")[2].removeprefix(".venv/bin/").strip()
                if called.startswith("amsd "):
                    found.append(Quoted(page.name, called))
    return found


def inline() -> list[Quoted]:
    """Commands that stand in a sentence or in a table."""
    return [
        Quoted(page.name, " ".join(text.split()))
        for page in PAGES
        for text in _INLINE.findall(_FENCE.sub("", page.read_text(encoding="utf-8")))
    ]


def words(command: str) -> list[str]:
    """Arguments after `amsd`, without the comment or the explanation that follows the command."""
    return shlex.split(_EXPLANATION.sub("", command), comments=True)[1:]
