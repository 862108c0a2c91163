"""American spelling and plain words in everything that a user reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.documentation.pages import PAGES, ROOT

BRITISH = re.compile(
    r"""\b(\w*(?:
        colour | behaviour | neighbour | honour | favour | labour | flavour | rigour     # -our
        | licence | defence | offence | pretence                                       # -ence
        | centre | metre\b | fibre | theatre                                           # -re
        | catalogue | analogue | programme | artefact | judgement | grey | whilst | amongst | learnt
        | travell | labell | modell | cancell(?!ation) | signall | initiall(?=[ei]) | channell | levell
        | (?: normal | recogn | optim | summar | organ | initial | standard | general | minim | maxim | serial | visual
            | util | parametr | parameter | real | character | synchron | random | factor | quant | regular | stabil
            | discret | penal | final | critic | categor | custom | author | apolog | emphas ) is (?: e | ed | es | er
            | ing | ation | ations )\b
        | analys (?: e | ed | ing )\b
    )\w*)""",
    re.IGNORECASE | re.VERBOSE,
)
FORMER = re.compile("shapes:colour|colourfulness")
"""Names of rewards that older recipes have."""
NAMES = re.compile(r"`[^`]*`|\"[^\"]*\"|\[[^]]*\]\([^)]*\)")
"""Names that a page quotes."""
FILES = (*PAGES, *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md")),
         *sorted((ROOT / "recipes").glob("*.toml")), *sorted((ROOT / "sweeps").glob("*.toml")))  # fmt: skip

CODE = sorted(path for folder in ("amsd", "embedded", "benchmarks") for path in (ROOT / folder).rglob("*")
              if path.suffix in (".py", ".html", ".css", ".js"))  # fmt: skip


@pytest.mark.parametrize("word", ["colours", "normalised", "licence", "centred", "recognising", "analysed", "labelled"])
def test_british_forms_are_found(word: str) -> None:
    assert BRITISH.search(f"of {word} pictures")


@pytest.mark.parametrize("word", ["colors", "normalized", "license", "centered", "cancellation", "analyses", "promise"])
def test_american_forms_pass(word: str) -> None:
    assert not BRITISH.search(f"of {word} pictures")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_recipes_and_sweeps_are_american(path: Path) -> None:
    text = NAMES.sub("", path.read_text(encoding="utf-8"))
    assert [found[0] for found in BRITISH.finditer(text)] == []


def test_code_and_its_messages_are_american() -> None:
    found = {
        str(path.relative_to(ROOT)): words
        for path in CODE
        if (words := BRITISH.findall(FORMER.sub("", path.read_text(encoding="utf-8"))))
    }
    assert found == {}


def test_former_names_still_load_and_are_not_listed() -> None:
    from amsd.rewards import table

    former = table.FORMER
    assert former == set(FORMER.pattern.split("|"))
    assert not former & set(table.reward_names())
    assert {table.resolve_reward(name).name for name in former} == former
