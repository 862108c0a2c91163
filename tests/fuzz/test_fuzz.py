"""A few examples of every property, and every example that once broke one (`nox -s faults` tries 10,000)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fuzz import campaign, properties

EXAMPLES = 30
#: Of properties that take longer.
FEWER = {"file of a run": 12, "command line": 15, "sweep file": 15, "recipe file": 15}


@pytest.mark.parametrize("tested", properties.properties(), ids=lambda each: each.name)
def test_any_input_is_used_or_refused_in_words(tested: properties.Property) -> None:
    count = FEWER.get(tested.name, EXAMPLES)
    done = campaign.run(tested, count, 0)
    assert done.findings == {}
    assert done.tried >= count


def test_a_campaign_finds_what_is_raised_and_what_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "PATIENCE", -1.0)

    def broken(example: str, scratch: Path) -> bool:
        raise KeyError(example)

    done = campaign.run(properties.Property("broken", properties.inputs.texts, broken), 20, 0)
    assert len(done.findings) == 2
    assert any(kind.startswith("KeyError at test_fuzz.py") for kind in done.findings)


@pytest.mark.parametrize(
    "text", ['{"a": ' + "[" * 3000, "[" * 3000 + "]" * 3000, '{"format": Infinity}', "\ud800", "[1]"]
)
def test_a_run_is_read_whatever_its_files_hold(text: str, tmp_path: Path) -> None:
    """Each file in turn: nested endlessly, infinite numbers, a list where a table should be."""
    for name in properties.inputs.run_files(properties.RELEASED):
        if "step-000002" in name.parts:  # the other checkpoint has the same files
            continue
        assert properties.run_file((name, properties.inputs.encoded(text)), tmp_path)


@pytest.mark.parametrize("changed", [{"setting": "../x"}, {"setting": ["a"]}, {"prompts": "abc"}, {"key": "a/b"}])
def test_a_result_cannot_name_another_folder(changed: dict[str, object], tmp_path: Path) -> None:
    whole = json.loads(next((properties.RELEASED / "evaluation" / "base").glob("*.json")).read_bytes())
    assert properties.result_file(json.dumps(whole).encode(), tmp_path)
    assert not properties.result_file(json.dumps(whole | changed).encode(), tmp_path)
