"""Entry points of a package: every seam finds them, and none of them replaces what is amsd's own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from amsd.cli.app import app
from amsd.diffusion.families import FAMILIES, family_class, known_families
from amsd.errors import UsageError
from amsd.plugins import Seam, fault_of
from amsd.recipe import Evaluation, MethodSection, load_recipe
from amsd.recipe.methods import METHODS, methods_with, rows, section_of
from amsd.rewards.table import require_known, resolve_embedder, resolve_reward, reward_names
from amsd.sweep.launchers import LAUNCHERS, SEAM, launch
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
HALF = {"Method": "HalfMethod", "Family": "HalfFamily"}
CODE = """
from typing import ClassVar, Literal

from amsd.recipe import Cost, MethodSection

class Method(MethodSection):
    label: ClassVar[str] = "Mine"
    trainer: ClassVar[str] = "mine:Trainer"
    name: Literal["mine"] = "mine"
    def cost(self, recipe, processes): return Cost({})

from amsd.diffusion.families.stable_diffusion import StableDiffusion
from amsd.diffusion.families.unet import UNetFamily

class Family(StableDiffusion): pass
class Embedder:
    name, version = "mine", "1"
    def __call__(self, *given): ...
    def to(self, device): return self
class Reward(Embedder):
    def truncated(self, prompts): return 0
class Tracker:
    def log(self, entry): ...
    def close(self, status, error): ...
    def interrupt(self): ...
class Launcher:
    def launch(self, request): return "nothing"

class Half: ...  # lacks all that a seam asks for
class HalfMethod(MethodSection):
    name: Literal["half"] = "half"
class HalfFamily(UNetFamily): ...
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package that offers one thing under a new name and one under a name of amsd's, at every seam."""
    (tmp_path / "mine.py").write_text(CODE, encoding="utf-8")
    points = "".join(
        f"[{group}]\nmine = mine:{name}\n{taken} = mine:{name}\nhalf = mine:{HALF.get(name, 'Half')}\n"
        for group, (name, taken) in SEAMS.items()
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


#: How each seam finds its thing -> what is said of one that lacks something.
LACKING: dict[str, tuple[Callable[[], object], str]] = {
    "method": (lambda: section_of("half"), "'half' is a method of an installed package, and mine:HalfMethod has no "
               "cost and no label and no trainer "),
    "family": (lambda: family_class("half"), "'half' is a family of an installed package, and mine:HalfFamily has no "
               "_encode_window and no encode_empty "),
    "reward": (lambda: resolve_reward("half"), "reward 'half': mine.Half has no __call__ and no name and "
               "no to and no truncated and no version"),
    "embedder": (lambda: resolve_embedder("half"), "embedder 'half': mine.Half has no __call__ and no name "
                 "and no to and no version"),
    "tracker": (lambda: TRACKERS.load("half"), "'half' is a tracker of an installed package, and mine:Half has no "
                "close and no interrupt and no log "),
    "launcher": (lambda: SEAM.load("half"), "'half' is a launcher of an installed package, and mine:Half has no "
                 "launch "),
}  # fmt: skip


@pytest.mark.parametrize("kind", LACKING)
@pytest.mark.usefixtures("package")
def test_a_class_that_lacks_something_is_named_with_what_it_lacks(kind: str) -> None:
    find, text = LACKING[kind]
    with pytest.raises(UsageError) as refused:
        find()
    assert str(refused.value).startswith(text)


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["train", "shapes", "--set", 'tracking.trackers=["half"]'], "mine:Half has no close and no interrupt"),
        (["recipe", "check", "shapes", "--set", "method.name=mine"], "its trainer 'mine:Trainer' cannot be imported"),
        (["sweep", "run", "shapes-smoke", "--launcher", "half"], "mine:Half has no launch"),
    ],
)
@pytest.mark.usefixtures("package")
def test_commands_refuse_it_before_anything_begins(
    command: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    refused = CliRunner().invoke(app, command).exception
    assert isinstance(refused, UsageError)
    assert text in str(refused)
    assert not list(Path().iterdir())


@pytest.mark.parametrize("thing", [3, "text", sys])
def test_what_cannot_be_called_is_refused(thing: object) -> None:
    assert fault_of(thing, None).startswith("is neither a class nor a function (got ")


def test_an_abstract_trainer_is_named_with_what_it_lacks() -> None:
    section = section_of("am")()
    section.__class__ = type("Mine", (type(section),), {"trainer": "amsd.training.trainer:SOCTrainer"})
    with pytest.raises(UsageError, match="has no compute_experience and no experience_class and no losses"):
        trainer_of(section)


@pytest.mark.usefixtures("package")
def test_a_launcher_that_returns_something_else_is_named() -> None:
    with pytest.raises(UsageError, match="mine:Launcher has not returned a Launched but 'nothing'"):
        launch("mine", None)  # type: ignore[arg-type]
