"""The file of a result is what other tools were promised."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from amsd.errors import UsageError
from amsd.evaluation.result import EvaluationResult
from amsd.evaluation.statistics import summarize


@pytest.fixture
def result() -> EvaluationResult:
    metrics = {
        "imagereward": summarize("1", [0.5, 1.0], [0.25, 0.5]),
        "diversity/dreamsim": summarize("sha", [0.1, 0.3]),
    }
    pictures = torch.zeros(1, 2, 3, 4, 4, dtype=torch.uint8)
    return EvaluationResult("default-eta0", {"eta": 0.0, "weights": "w"}, "abc", ("a", "b"), metrics, pictures=pictures)


def test_the_file_has_the_promised_keys(result: EvaluationResult, tmp_path: Path) -> None:
    data = json.loads(result.save(tmp_path / "evaluation").read_text())
    assert (tmp_path / "evaluation" / "default-eta0.json").is_file()
    assert {"format", "setting", "key", "base", "settings", "identity", "prompts", "metrics"} == set(data)
    entry = data["metrics"]["imagereward"]
    assert (entry["mean"], entry["per_prompt"]) == (0.75, [0.5, 1.0])
    assert entry["standard_error"] == pytest.approx(0.25)
    assert set(entry["paired"]) == {"difference", "standard_error", "p_value"}
    assert entry["paired"]["difference"] == 0.375
    assert data["metrics"]["diversity/dreamsim"]["paired"] is None


def test_it_loads_back_equal_but_for_the_pictures(result: EvaluationResult, tmp_path: Path) -> None:
    loaded = EvaluationResult.load(result.save(tmp_path))
    assert loaded == result
    assert loaded.pictures is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"metrics": {"a": {}}}'])
def test_another_file_is_refused_by_name(tmp_path: Path, content: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(content)
    with pytest.raises(UsageError, match=r"x\.json: is not an evaluation file"):
        EvaluationResult.load(file)
