"""Names resolve to rewards, wrong ones to an error that knows the right one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from amsd.cli.app import app
from amsd.errors import UsageError
from amsd.recipe import load_recipe
from amsd.recipe.catalog import names
from amsd.rewards import table
from amsd.rewards.simple import Brightness
from amsd.rewards.table import EMBEDDERS, resolve_embedder, resolve_reward, reward_names, unchecked


def needs_text(text: str, *, size: int) -> Brightness:
    """A factory with options, for the tests."""
    if size < 1:
        raise ValueError(f"size must be positive but got {size}")
    return Brightness()


def family(metric: str, **options: object) -> tuple[str, dict[str, object]]:
    """A family that takes any option."""
    return metric, options


def test_a_name_resolves() -> None:
    reward = resolve_reward("brightness")
    assert reward(torch.ones(1, 3, 4, 4), [""]).tolist() == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("name", "near"),
    [("imagreward", "imagereward"), ("brightnes", "brightness"), ("hps", "hps-v2.1"), ("shapes:rigth", "shapes:right")],
)
def test_an_unknown_name_gets_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"'{name}' is not a reward. Did you mean '{near}'"):
        resolve_reward(name)


def test_a_name_like_nothing_gets_the_list() -> None:
    with pytest.raises(UsageError, match=r"Known: brightness, .*pyiqa:METRIC"):
        resolve_reward("qqqqqq")


def test_a_family_without_a_member_is_refused() -> None:
    with pytest.raises(UsageError, match="pyiqa:METRIC"):
        resolve_reward("pyiqa:")


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(UsageError, match="'brightness' has no option 'gamma'"):
        resolve_reward("brightness", {"gamma": 2})


def test_wrong_missing_and_bad_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(table.REWARDS, "mine", table.Row(f"{__name__}:needs_text", "pixels"))
    with pytest.raises(UsageError, match=r"no option 'sizes'\. Did you mean 'size'"):
        resolve_reward("mine", {"sizes": 1, "text": "a"})
    with pytest.raises(UsageError, match="needs the option 'size'"):
        resolve_reward("mine", {"text": "a"})
    with pytest.raises(UsageError, match="cannot be built with text = 'a', size = 0: size must be positive"):
        resolve_reward("mine", {"text": "a", "size": 0})
    assert resolve_reward("mine", {"text": "a", "size": 1}).name == "brightness"


def test_a_family_passes_what_follows_its_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(table.FAMILIES, "pyiqa", table.FamilyRow(f"{__name__}:family", "pyiqa:METRIC"))
    assert resolve_reward("pyiqa:musiq", {"anything": 1}) == ("musiq", {"anything": 1})  # type: ignore[comparison-overlap]


def test_shapes_rewards_resolve_with_their_options() -> None:
    right = resolve_reward("shapes:right", {"ballast": 4.0})
    assert right.name == "shapes:right"
    with pytest.raises(UsageError, match=r"ballast = 0: .*positive"):
        resolve_reward("shapes:right", {"ballast": 0})


def test_an_unknown_embedder_gets_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"'dreamsin' is not an embedder\. Did you mean 'dreamsim'"):
        resolve_embedder("dreamsin")


def test_every_promised_name_is_there() -> None:
    promised = {"imagereward", "clip-score", "pickscore", "hps-v2.1", "laion-aesthetic", "brightness", "colorfulness"}
    assert promised <= set(reward_names())
    assert {"pyiqa:METRIC", "python:MODULE:FUNCTION", "shapes:right"} <= set(reward_names())
    assert [*EMBEDDERS] == ["pixels", "clip", "dreamsim", "shapes:classifier"]


def test_the_table_itself_imports_no_reward() -> None:
    code = "import sys, amsd.rewards.table; print([m for m in sys.modules if m.startswith(('amsd.rewards.', 'torch'))])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "['amsd.rewards.table']"


def test_a_held_out_reward_of_another_kind_is_recommended() -> None:
    assert unchecked(["imagereward"], ["clip-score"]) is None
    assert unchecked(["shapes:right"], ["shapes:alignment"]) is None
    assert unchecked(["clip-score"], ["pyiqa:musiq"]) is None
    advice = unchecked(["clip-score"], ["pickscore", "hps-v2.1"])
    assert advice is not None
    assert "CLIP" in advice
    assert "'imagereward'" in advice
    assert "'shapes:alignment'" in (unchecked(["shapes:right"], []) or "")
    assert "'clip-score'" in (unchecked(["imagereward"], []) or "")
    for name in names("recipes"):
        recipe = load_recipe(name)
        assert unchecked([term.name for term in recipe.reward], recipe.evaluation.metrics) is None, name
    found = CliRunner().invoke(app, ["recipe", "check", "shapes", "--set", "evaluation.metrics=[]"])
    assert "so nothing would show reward hacking" in found.output
    assert "'shapes:alignment'" in found.output


class Half:
    """Somebody's first try."""

    name, version = "half", "1"

    def __call__(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return images.mean((1, 2, 3))


class Whole(Half):
    def to(self, device: torch.device) -> Whole:
        return self

    def truncated(self, prompts: list[str]) -> int:
        return 0


def test_a_scorer_of_a_package_that_lacks_something_is_refused_by_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "mine-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    here = "tests.rewards.test_table"
    (info / "entry_points.txt").write_text(
        f"[amsd.rewards]\nhalf = {here}:Half\nother = {here}:Whole\n[amsd.embedders]\nhalf = {here}:Half\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match=r"reward 'half': tests.rewards.test_table.Half has no to and no truncated"):
        resolve_reward("half")
    with pytest.raises(UsageError, match=r"embedder 'half': .* has no to\. "):
        resolve_embedder("half")
    with pytest.raises(UsageError, match="'other': its class calls itself 'half'"):
        resolve_reward("other")
