"""The code of docs/extending.md, taken from the page and used as that of installed packages."""

from __future__ import annotations

import json
import re
import shlex
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


def install(folder: Path, name: str, section: str, points: int) -> str:
    """The python blocks of a section as the module `name`, with its entry points, as installed."""
    code = "\n\n".join(re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL))
    (folder / f"{name}.py").write_text(code, encoding="utf-8")
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    rows = re.findall(r"^\[project\.entry-points\.\"(.*)\"\]$|^([\w-]+ = )\"(\w+:\w+)\"$", section, flags=re.MULTILINE)
    lines = [f"[{group}]" if group else f"{left}{right}" for group, left, right in rows]
    assert len([line for line in lines if f"{name}:" in line]) == points
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    return code


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the page has before the families of models, as two installed packages."""
    folder, text = tmp_path_factory.mktemp("site"), PAGE.read_text(encoding="utf-8").partition("\n## A model family")[0]
    parts, _, methods = text.partition("\n## A method")
    install(folder, "my_parts", parts, 3)
    code = install(folder, "my_methods", methods, 2)
    assert all(len(part.splitlines()) <= 100 for part in code.split("class LastStep(")), "a method is a short file"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield


@pytest.mark.usefixtures("package")
def test_a_reward_an_embedder_and_a_tracker_of_the_page_work_in_the_recipe_that_it_names(tmp_path: Path) -> None:
    (command,) = re.findall(r"^amsd train shapes (.*my-csv.*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    named = [word for word in shlex.split(command) if word != "--set"]
    small = [
        *COMMON[:-1],
        "method.timesteps_per_trajectory=3",
        "evaluation.every=1",
        "evaluation.prompts=3",
        "evaluation.samples_per_prompt=2",
    ]
    ended = train(load_recipe("shapes", [*small, *named]), tmp_path / "run", resume=False)
    (result,) = ended.results
    assert {"my-sharpness", "diversity/my-mean-color"} <= set(result.metrics)
    rows = [line.split(",") for line in (tmp_path / "run" / "scalars.csv").read_text(encoding="utf-8").splitlines()]
    written = {(axis, int(at)): float(value) for axis, at, name, value in rows if name in ("loss", "eval/my-sharpness")}
    assert set(written) == {("step", 1), ("step", 2), ("eval/step", 0), ("eval/step", 1), ("eval/step", 2)}
    assert written["eval/step", 2] == result.metrics["my-sharpness"].mean


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
