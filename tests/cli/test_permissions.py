"""What this user may not read or write is a usage error that names it, before anything is created."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from amsd.cli import main
from amsd.run_directory import damage
from tests import pipelines

NOBODY = 65534
RECIPE = """
[model]
pretrained = "./model"
[[reward]]
name = "brightness"
[prompts]
train = "prompts.txt"
evaluation = ["a cat"]
[tracking]
mode = "disabled"
"""


@pytest.fixture(scope="module")
def files() -> Iterator[Path]:
    """A folder that everybody may look into: those of pytest are closed to others."""
    folder = Path(tempfile.mkdtemp())
    pipelines.stable_diffusion().save_pretrained(folder / "model")
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "prompts.txt").write_text("a cat\n")
    shutil.copytree(Path(__file__).parents[1] / "data" / "run-0.1.0", folder / "run")
    (folder / "closed").mkdir()
    shutil.copytree(folder / "model", folder / "closed" / "model")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    (folder / "room").mkdir()
    (folder / "room").chmod(0o777)
    # What a command imports late may lie where only root looks: all of it is imported now.
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for arguments in (
            ["recipe", "check", "recipe.toml"],
            ["sample", "./model", "-p", "x", "-o", "warm", "--steps", "1"],
        ):
            patch.setattr(sys, "argv", ["amsd", *arguments])
            with suppress(SystemExit):
                main()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def nobody(files: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, this process reads and writes as a user without rights, also where the tests run as root."""
    monkeypatch.chdir(files)
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    yield
    if root:
        os.seteuid(0)


def ends(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["amsd", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0), capsys.readouterr().err


UNREADABLE = {
    "model/unet/diffusion_pytorch_model.safetensors": ["recipe", "check", "recipe.toml"],
    "model/unet/config.json": ["recipe", "check", "recipe.toml"],
    "model/model_index.json": ["sample", "base", "--recipe", "recipe.toml", "-p", "x", "-o", "room/out"],
    "model/tokenizer": ["recipe", "check", "recipe.toml"],
    "prompts.txt": ["train", "recipe.toml", "--output", "room/out"],
    "recipe.toml": ["train", "recipe.toml", "--output", "room/out"],
    "closed": ["sample", "./closed/model", "-p", "x", "-o", "room/out"],
}
"""A file or folder that is closed, and a command that needs it."""


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_named(
    name: str, files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    before = (files / name).stat().st_mode
    (files / name).chmod(0)
    request.addfinalizer(lambda: (files / name).chmod(before))
    request.getfixturevalue("nobody")
    code, said = ends(capsys, monkeypatch, *UNREADABLE[name])
    assert code == 2
    assert "Permission denied" in said
    assert name in said
    assert "Traceback" not in said
    assert not Path("room/out").exists()


@pytest.mark.parametrize("arguments", [
    ("train", "recipe.toml", "--output", "new/run"), ("report", "model", "--output", "new/page.html"),
    ("sample", "base", "--recipe", "recipe.toml", "-p", "x", "-o", "new/pictures"),
    ("export", "model", "--output", "new/export"), ("eval", "run"), ("eval", "run", "--recipe", "recipe.toml"),
    ("eval", "base", "--watch", "run"), ("eval", "./model", "--recipe", "recipe.toml"), ("report", "run"),
    ("eval", "base", "--table", "new/table"), ("sweep", "run", "shapes-smoke"),
    ("sweep", "export", "shapes-smoke", "--output", "new/sweep.yaml"),
])  # fmt: skip
@pytest.mark.usefixtures("nobody")
def test_what_cannot_be_written_is_refused_first(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != NOBODY:
        pytest.skip("only root can become a user who owns nothing")
    code, said = ends(capsys, monkeypatch, *arguments)
    assert code == 2
    assert "cannot be written to; " in said
    assert any(way in said for way in ("choose another folder", "evaluate a copy of it", "name another one"))


@pytest.mark.usefixtures("nobody")
def test_a_checkpoint_that_may_not_be_read_is_not_damaged(files: Path, request: pytest.FixtureRequest) -> None:
    """A resume would else go on from an older one."""
    if os.geteuid() != NOBODY:
        pytest.skip("only root can become a user who owns nothing")
    manifest = files / "run" / "checkpoints" / "step-000004" / "manifest.json"
    os.seteuid(0)
    manifest.chmod(0)
    request.addfinalizer(lambda: (os.seteuid(0), manifest.chmod(0o755)))
    os.seteuid(NOBODY)
    with pytest.raises(PermissionError):
        damage(manifest.parent)
