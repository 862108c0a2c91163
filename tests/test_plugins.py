"""Entry points of a package: every seam finds them, and none of them replaces what is amsd's own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from amsd.diffusion.families import FAMILIES, family_class, known_families
from amsd.errors import UsageError
from amsd.plugins import Seam
from amsd.recipe import Evaluation, MethodSection, load_recipe
from amsd.recipe.methods import METHODS, methods_with, rows, section_of
from amsd.rewards.table import require_known, resolve_embedder, resolve_reward, reward_names
from amsd.sweep.launchers import LAUNCHERS, SEAM
from amsd.tracking.backend import TABLE, TRACKERS
from amsd.training.methods import trainer_of

SEAMS = {
    "amsd.methods": ("Method", "am"),
    "amsd.families": ("Family", "FluxPipeline"),
    "amsd.rewards": ("Reward", "brightness"),
    "amsd.embedders": ("Embedder", "pixels"),
    "amsd.trackers": ("Tracker", "wandb"),
    "amsd.launchers": ("Launcher", "local"),
}
CODE = """
from typing import ClassVar, Literal

from amsd.recipe import Cost, MethodSection

class Method(MethodSection):
    label: ClassVar[str] = "Mine"
    trainer: ClassVar[str] = "mine:Trainer"
    name: Literal["mine"] = "mine"
    def cost(self, recipe, processes): return Cost({})

class Family: pass
class Embedder:
    name, version = "mine", "1"
    def __call__(self, *given): ...
    def to(self, device): return self
class Reward(Embedder):
    def truncated(self, prompts): return 0
class Tracker: pass
class Launcher: pass
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package that offers one thing under a new name and one under a name of amsd's, at every seam."""
    (tmp_path / "mine.py").write_text(CODE, encoding="utf-8")
    points = "".join(
        f"[{group}]\nmine = mine:{name}\n{taken} = mine:{name}\n" for group, (name, taken) in SEAMS.items()
    )
    (tmp_path / "mine-1.dist-info").mkdir()
    (tmp_path / "mine-1.dist-info" / "METADATA").write_text("Name: mine\nVersion: 1\n")
    (tmp_path / "mine-1.dist-info" / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("package")
def test_every_seam_finds_a_package_and_keeps_its_own() -> None:
    assert issubclass(section_of("mine"), MethodSection)
    assert section_of("mine").label == "Mine"
    assert rows()["am"] == METHODS["am"]
    assert family_class("mine").__name__ == "Family"
    assert known_families()["FluxPipeline"] == FAMILIES["FluxPipeline"]
    assert type(resolve_reward("mine")).__name__ == "Reward"
    assert type(resolve_reward("brightness")).__name__ == "Brightness"
    assert type(resolve_embedder("mine")).__name__ == "Embedder"
    assert type(resolve_embedder("pixels")).__name__ == "PixelEmbedder"
    require_known(["mine"], Evaluation(diversity=("mine",)))
    assert "mine" in reward_names()
    assert TRACKERS.load("mine").__name__ == "Tracker"
    assert TRACKERS.rows()["wandb"] == TABLE["wandb"]
    assert SEAM.load("mine").__name__ == "Launcher"
    assert SEAM.rows()["local"] == LAUNCHERS["local"]


def test_without_the_package_its_name_is_refused_and_the_nearest_is_named() -> None:
    for look in (lambda: TRACKERS.load("mine"), lambda: SEAM.load("mine"), lambda: resolve_embedder("mine")):
        with pytest.raises(UsageError, match=r"^'mine' is not an? \w+\. Known: "):
            look()
    with pytest.raises(UsageError, match=r"'slrm' is not a launcher\. Did you mean 'slurm'\?"):
        SEAM.load("slrm")
    shown = Seam("a thing", "amsd.none", {"new": "a:b", "old": "a:b"}, frozenset({"old"}), ("FORM:NAME",))
    assert shown.shown() == ["new", "FORM:NAME"]
    shown.require(["old"])


@pytest.mark.parametrize("row", ["no_such_module:Method", "mine:Family"])
@pytest.mark.usefixtures("package")
def test_a_broken_package_is_named_and_spoils_no_other_recipe(
    row: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    info = tmp_path / "broken-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: broken\nVersion: 1\n")
    groups = ("methods", "rewards", "launchers")
    (info / "entry_points.txt").write_text("".join(f"[amsd.{group}]\nbroken = {row}\n" for group in groups))
    sys.path.insert(0, str(tmp_path))  # entry points are read once for each path; the fixture takes it back
    with pytest.raises(UsageError, match=f"'broken' is a method of an installed package, and {row} "):
        load_recipe("shapes", ["method.name=broken"])
    assert load_recipe("shapes", ["method.name=mine"]).method.name == "mine"
    assert load_recipe("shapes").method.name == "am"
    assert '"ram"' in methods_with(lambda method: not method.needs_reward_gradient)
    assert "Mend or uninstall that package" in caplog.text
    if row.startswith("no_such"):
        for load in (resolve_reward, SEAM.load):
            with pytest.raises(UsageError, match=f"{row} cannot be imported .ModuleNotFoundError"):
                load("broken")


@pytest.mark.usefixtures("package")
def test_a_trainer_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="method 'mine': its trainer 'mine:Trainer' cannot be imported"):
        trainer_of(section_of("mine")())
