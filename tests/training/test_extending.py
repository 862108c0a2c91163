"""The methods of docs/extending.md, taken from the page and trained from the command line as an installed package's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from amsd.experiment.train import train
from amsd.recipe import identity, load_recipe
from amsd.recipe.cost import cost_per_trajectory
from amsd.recipe.rules import warnings

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
COMMON = [
    "schedule.num_inference_steps=4", "optimizer.prompts_per_step=4", "optimizer.micro_batch=2", "training.steps=2",
    "training.checkpoint_every=1", "evaluation.every=0", "tracking.trackers=none",
]  # fmt: skip


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The page's python blocks as a module, and its entry points as an installed distribution has them."""
    folder, text = tmp_path_factory.mktemp("site"), PAGE.read_text(encoding="utf-8").partition("\n## A model family")[0]
    code = "\n\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
    assert all(len(part.splitlines()) <= 100 for part in code.split("class LastStep(")), "a method is a short file"
    (folder / "my_methods.py").write_text(code, encoding="utf-8")
    info = folder / "my_methods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-methods\nVersion: 1.0\n", encoding="utf-8")
    rows = re.findall(r"^([\w-]+) = \"(my_methods:\w+)\"$", text, flags=re.MULTILINE)
    assert len(rows) == 2
    points = "\n".join(f"{name} = {value}" for name, value in rows)
    (info / "entry_points.txt").write_text(f"[amsd.methods]\n{points}\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("method", ["rwr", "last-step"])
def test_a_method_of_the_page_trains_and_resumes(method: str, tmp_path: Path) -> None:
    recipe = load_recipe("shapes", [f"method.name={method}", *COMMON])
    # The recipe's own keys are another method's: noted, not refused.
    assert {problem.key for problem in warnings(recipe) if problem.key.startswith("method.")} == {
        "method.reward_multiplier", "method.timesteps_per_trajectory",
    }  # fmt: skip
    assert cost_per_trajectory(recipe).total > 0
    whole = train(recipe, tmp_path / "whole", resume=False).run
    short = load_recipe("shapes", [f"method.name={method}", *COMMON, "training.steps=1"])
    train(short, tmp_path / "again", resume=False)
    again = train(recipe, tmp_path / "again", resume=True).run
    logged = [
        [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines() if '"loss"' in line]
        for run in (whole, again)
    ]
    assert [line["step"] for line in logged[0]] == [1, 2]
    for one, other in zip(*logged, strict=True):
        for key in ("loss", "reward/mean", "reward/std", "gradient_norm"):
            assert one[key] == other[key], key
    assert logged[0][0]["gradient_norm"] > 0
    assert identity(recipe) != identity(load_recipe("shapes"))
