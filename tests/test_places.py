"""What leaves the machine names no place on it: texts, values, and every file exported, tracked or reported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from amsd.places import in_text, in_value, published_toml, without_places
from amsd.recipe import from_dict, load_recipe
from tests.cli.commands import write_recipe

HOME = "Alice Müller-home"
"""A user's name that nothing may tell, with a space and a letter of another alphabet."""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("see /home/alice/x.py: bad; ok", "see x.py: bad; ok"),
        ("https://host/a/b?c=/d is asked", "https://host/a/b?c=/d is asked"),
        ("python:/home/alice/r.py:f runs /home/alice/r.py.", "python:r.py:f runs r.py."),
        ("Upload with `wandb sync '/data/My runs/r/wandb/off-1'`.", "Upload with `wandb sync 'wandb/off-1'`."),
        ("and/or 1/2 a /imagine b", "and/or 1/2 a /imagine b"),
        (r"C:\Users\alice\x.txt is bad", "x.txt is bad"),
        ("~/x/y.txt and ~alice/m", "y.txt and m"),
        ("(/home/alice)", "(home)"),
        ("eval/brightness/difference", "eval/brightness/difference"),
        ("eval/python:/home/alice/r.py:f/p_value", "eval/python:r.py:f/p_value"),
    ],
)
def test_a_sentence_keeps_the_last_name_of_a_path(text: str, told: str) -> None:
    assert in_text(text, [Path("/data/My runs/r")]) == told


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("/data/my models/sd15/", "sd15"),
        ("python:/home/alice/r.py:f", "python:r.py:f"),
        ("~alice", "home"),
        ("/home/alice/", "home"),
        ("../../alice/y.txt", "y.txt"),
        ("file:///home/alice/x", "x"),
        (r"D:\models\x", "x"),
        *((same, same) for same in ("embedded:shapes", "hub:a/b/c", "a/b", "mine/x.txt", "http://h:80/score", "")),
    ],
)
def test_a_value_that_is_a_path_is_its_last_name(value: str, told: str) -> None:
    assert in_value(value) == told
    assert without_places({value: [value, 1, None]}) == {told: [told, 1, None]}


@pytest.mark.parametrize("recipe", ["shapes", "shapes-buffer", "flow"])
def test_a_recipe_without_places_is_published_as_it_is(recipe: str) -> None:
    import tomllib

    original = load_recipe(recipe)
    assert from_dict(tomllib.loads(published_toml(original))).model_dump() == original.model_dump()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's home, with a model, a recipe of absolute paths, and a run that W&B and TensorBoard heard of."""
    from typer.testing import CliRunner

    from amsd.cli.app import app

    folder = tmp_path_factory.mktemp("homes") / HOME
    folder.mkdir()
    recipe = write_recipe(folder)
    (folder / "train.txt").write_text("a red circle\na cat\n", encoding="utf-8")
    reward = "def warmth(images, prompts):\n    return images[:, 0].mean((1, 2))\n"
    (folder / "mine.py").write_text(reward, encoding="utf-8")
    (folder / "note.txt").write_text("x", encoding="utf-8")
    name = json.dumps(f"python:{folder / 'mine.py'}:warmth", ensure_ascii=False)
    settings = [
        "training.steps=2", f"prompts.train={json.dumps(str(folder / 'train.txt'), ensure_ascii=False)}",
        f'reward=[{{name={name}}}, {{name="brightness"}}]', f"evaluation.metrics=[{name}]",
        "model.parameterization=lora", "model.lora.rank=2", 'tracking.trackers=["wandb", "tensorboard"]',
        "tracking.mode=offline", "tracking.name=mine", f"tracking.notes={json.dumps(f'see {folder}/note.txt')}",
    ]  # fmt: skip
    options = [part for setting in settings for part in ("--set", setting)]
    for arguments in (
        ["train", str(recipe), "--output", str(folder / "run"), *options],
        ["export", str(folder / "run"), "--to", str(folder / "out" / "pipeline")],
        ["export", str(folder / "run"), "--to", str(folder / "out" / "lora"), "--format", "kohya"],
        ["report", str(folder / "run"), "--html", str(folder / "out" / "report.html")],
    ):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, (arguments, done.output, done.exception)
    return folder


def told(folder: Path) -> Iterator[tuple[Path, bytes]]:
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            yield file.relative_to(folder), file.read_bytes()


def names_the_place(content: bytes, work: Path) -> bool:
    marks = [b"ller-home", str(work.parent).encode(), str(Path.home()).encode() + b"/", str(Path.cwd()).encode()]
    return any(mark in content for mark in marks)


@pytest.mark.slow
def test_no_exported_file_names_a_place(work: Path) -> None:
    files = dict(told(work / "out"))
    assert {"recipe.toml", "model_index.json", "README.md"} <= {name.name for name in files}
    assert [name for name, content in files.items() if names_the_place(content, work)] == []
    recipe = (work / "out" / "pipeline" / "recipe.toml").read_text(encoding="utf-8")
    assert 'pretrained = "model"' in recipe
    assert 'name = "python:mine.py:warmth"' in recipe
    assert 'train = "train.txt"' in recipe


@pytest.mark.slow
def test_nothing_that_trackers_upload_names_a_place(work: Path) -> None:
    (run,) = (work / "run" / "wandb").glob("offline-run-*")
    uploaded = {name: content for name, content in told(run) if name.suffix == ".wandb" or name.parts[0] == "files"}
    uploaded |= dict(told(work / "run" / "tensorboard"))
    assert len(uploaded) > 3
    assert [name for name, content in uploaded.items() if names_the_place(content, work)] == []
    (record,) = (content for name, content in uploaded.items() if name.suffix == ".wandb")
    assert b"python:mine.py:warmth" in record
    assert b"checkpoints/step-000002" in record
