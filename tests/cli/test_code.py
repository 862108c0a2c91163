"""Code that came with a run runs for nobody who has not said so; the user's own code needs no word."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from amsd.cli.app import app
from amsd.errors import UsageError
from amsd.files import sha256
from amsd.recipe import Recipe, from_dict
from amsd.recipe.schema import CodeFile
from amsd.rewards.code import Target, check_code, require_consent
from tests.data.make_run import write_model

RELEASED = Path(__file__).parents[1] / "data" / "run-0.1.0"
SOURCE = """
from pathlib import Path
Path({marker!r}).touch()

def score(images, prompts):
    return images.mean((1, 2, 3))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    write_model(folder)
    return folder


class Received:
    """A run whose recipe watches a function in a file; `marker` appears once that file is imported."""

    def __init__(self, folder: Path, model: Path, inside: bool) -> None:
        self.run, self.marker = folder / "run", folder / "it-ran"
        shutil.copytree(RELEASED, self.run)
        code = (self.run if inside else folder) / "watch.py"
        (folder / "model").symlink_to(model)
        code.write_text(SOURCE.format(marker=str(self.marker)), encoding="utf-8")
        # The name is as it was written when the recipe was made; where the file lies is recorded beside it.
        named = (
            f'metrics = ["python:watch.py:score"]\n\n[code."watch.py"]\npath = "{code}"\nsha256 = "{sha256(code)}"\n'
        )
        for place in (self.run, self.run / "checkpoints/step-000002", self.run / "checkpoints/step-000004"):
            recipe = place / "recipe.toml"
            text = recipe.read_text(encoding="utf-8")
            assert "metrics = []" in text
            head, _, tail = text.partition("metrics = []")
            table, rest = named.split("\n\n", 1)
            recipe.write_text(f"{head}{table}{tail}\n{rest}", encoding="utf-8")
            manifest = place / "manifest.json"
            if manifest.is_file():
                content = json.loads(manifest.read_text(encoding="utf-8"))
                content["files"]["recipe.toml"] = sha256(recipe)
                manifest.write_text(json.dumps(content), encoding="utf-8")

    def amsd(self, *arguments: str) -> tuple[int, str]:
        """Exit code and message of a command, in which RUN stands for the run."""
        given = [each.replace("RUN", str(self.run)) for each in arguments]
        ended = CliRunner().invoke(app, given)
        if ended.exception is None or isinstance(ended.exception, SystemExit):
            return ended.exit_code, ended.output
        if isinstance(ended.exception, UsageError):
            return ended.exception.exit_code, str(ended.exception)
        raise ended.exception


@pytest.fixture
def received(tmp_path: Path, model: Path) -> Received:
    """Its code lies beside it, where it lay at training."""
    return Received(tmp_path, model, inside=False)


@pytest.fixture
def poisoned(tmp_path: Path, model: Path) -> Received:
    """Its code came with it."""
    return Received(tmp_path, model, inside=True)


RUNNING = (
    ("eval", "RUN"),
    ("eval", "RUN/checkpoints/step-000002"),
    ("eval", "base", "--recipe", "RUN/recipe.toml"),
    ("eval", "base", "--watch", "RUN"),
    ("diagnose", "RUN/recipe.toml", "--pairs", "2"),
    ("train", "RUN/recipe.toml", "--output", "RUN", "--resume"),
    ("train", "RUN/recipe.toml", "--output", "RUN/../other"),
    ("train", "RUN/checkpoints/step-000004/recipe.toml", "--output", "RUN/../other"),
    ("train", "RUN/recipe.toml", "--output", "RUN/../other", "--dry-run"),
)


@pytest.mark.parametrize("command", RUNNING, ids=" ".join)
def test_what_came_with_a_run_is_refused(command: tuple[str, ...], poisoned: Received) -> None:
    code, said = poisoned.amsd(*command)
    assert code == 2
    assert "python:watch.py:score" in said
    assert "which came with the run" in said
    assert "--allow-code" in said
    assert not poisoned.marker.exists()
    assert not (poisoned.run.parent / "other").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("sample", "RUN", "--prompt", "a cat", "--out", "RUN/../pictures"),
        ("export", "RUN", "--to", "RUN/../exported"),
        ("report", "RUN", "--html", "RUN/../page.html"),
        ("recipe", "check", "RUN/recipe.toml"),
        ("recipe", "show", "RUN/recipe.toml"),
    ],
    ids=" ".join,
)
def test_commands_that_score_nothing_run_no_code(command: tuple[str, ...], poisoned: Received) -> None:
    code, said = poisoned.amsd(*command)
    assert code == 0, said
    assert not poisoned.marker.exists()


def test_it_runs_when_the_user_says_so(poisoned: Received) -> None:
    code, said = poisoned.amsd("eval", "RUN", "--allow-code")
    assert code == 0, said
    assert "python:watch.py:score" in said
    assert poisoned.marker.exists()


def test_a_resume_takes_the_word_along(poisoned: Received) -> None:
    command = ("train", "RUN/recipe.toml", "--output", "RUN", "--resume", "--allow-code", "--set", "training.steps=5")
    code, said = poisoned.amsd(*command)
    assert code == 0, said
    assert poisoned.marker.exists()


def test_the_users_own_file_needs_no_word(received: Received) -> None:
    code, said = received.amsd("eval", "RUN")
    assert code == 0, said
    assert received.marker.exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda made: made.run.parent.joinpath("watch.py").write_text("score = 1\n"), "has changed since"),
        (lambda made: _forget(made.run), "no run recorded that file as yours"),
    ],
)
def test_a_file_that_is_not_the_recorded_one_is_refused(
    received: Received, change: Callable[[Received], object], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(received)
    monkeypatch.chdir(received.run.parent)
    code, said = received.amsd("eval", "RUN")
    assert (code, reason in said) == (2, True), said
    assert not received.marker.exists()


def _forget(run: Path) -> None:
    for recipe in run.rglob("recipe.toml"):
        recipe.write_text(recipe.read_text(encoding="utf-8").partition("[code.")[0], encoding="utf-8")


def test_a_place_that_depends_on_where_one_stands_is_no_record(
    received: Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(received.run.parent)
    for recipe in received.run.rglob("recipe.toml"):
        text = recipe.read_text(encoding="utf-8")
        recipe.write_text(text.replace(str(received.run.parent / "watch.py"), "watch.py"), encoding="utf-8")
    code, said = received.amsd("eval", "RUN")
    assert (code, "no run recorded" in said) == (2, True), said


def recipe_of(name: str, **more: object) -> Recipe:
    return from_dict({"reward": [{"name": name, **more}]})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("python:", "expected python:"),
        ("python:x", "expected python:"),
        ("python::f", "expected python:"),
        ("python:x:", "expected python:"),
        ("python:no_such_module_anywhere:f", "no module"),
        ("python:../../../nothing.py:f", "no file"),
        ("python:a b:f", "no module"),
        ("python:json:no_such_name", "has nothing called"),
    ],
)
def test_a_name_that_means_nothing_is_refused_before_anything_runs(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_code(recipe_of(name))


@pytest.mark.parametrize("text", ["def broken(:\n", "\0", "x = " + "(" * 500 + ")" * 500, "é".encode("latin-1")])
def test_a_file_that_is_no_python_is_refused(text: str | bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=r"a\.py (is not a Python file|has nothing called)"):
        Target.of(f"python:{file}:f").check(file)


def test_names_bound_in_any_way_are_found(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    lines = (
        "import x.y as one", "if True:", "    from z import two", "else:", "    two = 1", "try:",
        "    def three(): ...", "except E:", "    four: int = 1", "class Five: ...",
    )  # fmt: skip
    file.write_text("\n".join(lines), encoding="utf-8")
    for name in ("one", "two", "three", "four", "Five"):
        Target.of(f"python:{file}:{name}").check(file)
    with pytest.raises(UsageError, match="has nothing called 'six'"):
        Target.of(f"python:{file}:six").check(file)


@pytest.mark.parametrize("place", ["/proc/self/cwd/watch.py", "/dev/fd/3"])
def test_a_place_that_is_another_file_for_every_process_is_no_record(
    place: str, received: Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(received.run.parent)
    monkeypatch.setattr(Path, "is_file", lambda self: str(self) == place or self.exists())
    recipe = from_dict({"reward": [{"name": "python:watch.py:score"}], "code": {"watch.py": {"path": place}}})
    record = {"watch.py": CodeFile(path=place, sha256="0")}
    with pytest.raises(UsageError, match="not the path of a file"):
        require_consent(recipe, record, [], allowed=False)


def test_a_pickle_needs_the_word_too() -> None:
    recipe = recipe_of("pyiqa:niqe", options={"trust_pickle": True})
    with pytest.raises(UsageError, match="trust_pickle"):
        require_consent(recipe, {}, [], allowed=False)
    require_consent(recipe, {}, [], allowed=True)
    require_consent(recipe_of("pyiqa:niqe"), {}, [], allowed=False)


def test_pythons_own_library_is_no_scorer() -> None:
    recipe = recipe_of("python:os:system")
    place = Target.of("python:os:system").locate({})
    record = {"os": CodeFile(path=str(place), sha256=sha256(place))}
    with pytest.raises(UsageError, match="Python's own library"):
        require_consent(recipe, record, [], allowed=False)
