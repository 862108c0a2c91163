"""Layout of a run directory (a promise to users and to other tools) and what makes a checkpoint whole.

RUN/recipe.toml  RUN/prompts.json  RUN/metrics.jsonl  RUN/checkpoints/step-000040/{the network's
folder|adapter_model.safetensors, state, evaluation, samples, manifest.json}  RUN/checkpoints/latest, best
RUN/evaluation/base/<setting>.json  RUN/samples/base/  RUN/wandb/

A checkpoint that is deleted leaves RUN/evaluation/step-000040/ and RUN/samples/step-000040/ behind.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from amsd.errors import RunError, UsageError, option
from amsd.files import sha256, write_text
from amsd.reading import parsed_object
from amsd.recipe import Recipe, identity

#: Added after a checkpoint is complete, so not covered by its manifest.
ADDED_LATER = ("evaluation", "samples", "manifest.json")
#: Version of a checkpoint's layout. 1 had no key `format` in its manifest; it is read like 2.
FORMAT = 2
#: How the folder of a checkpoint begins that is being deleted.
GONE = ".gone-"
_LOG = logging.getLogger(__name__)
_STEP = re.compile(r"step-([0-9]{6}|[1-9][0-9]{6,17})")


@dataclass(frozen=True, init=False)
class RunDirectory:
    """Paths inside one run."""

    path: Path

    def __init__(self, path: Path | str) -> None:
        """`path` is the folder; an empty text would be the current one.

        Raises:
            UsageError: it is an empty text.
        """
        if path == "":
            raise UsageError(f"{option('output')} '' names no folder; '.' is the current one.")
        object.__setattr__(self, "path", Path(path))

    @property
    def recipe(self) -> Path:
        """The fully resolved recipe."""
        return self.path / "recipe.toml"

    @property
    def prompts(self) -> Path:
        """Identity of the prompts that the run was started with."""
        return self.path / "prompts.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def base_evaluation(self) -> Path:
        """Evaluation of the unchanged model, shared by all checkpoints of the run."""
        return self.path / "evaluation" / "base"

    @property
    def base_samples(self) -> Path:
        """Pictures of the unchanged model."""
        return self.path / "samples" / "base"

    @property
    def used(self) -> bool:
        """Whether a run lies here: it exists from its first checkpoint or first logged step on.

        A recipe that no run wrote is somebody's own, and protected too.
        """
        return bool(self.steps()) or self._logged or (self.recipe.is_file() and not self._recipe_is_of_a_start)

    @property
    def _logged(self) -> bool:
        """Whether an optimizer step is logged."""
        if not self.metrics.is_file():
            return False
        with self.metrics.open(encoding="utf-8", errors="replace") as stream:
            return any(_is_step(line) for line in stream)

    @property
    def _recipe_is_of_a_start(self) -> bool:
        return "\norigin = " in "\n" + self.recipe.read_text(encoding="utf-8", errors="replace")

    def require_unused(self) -> None:
        """Protect a run from a second one.

        Raises:
            UsageError: a run was started here.
        """
        if self.used:
            raise UsageError(
                f"{self.path}: already holds a run. Continue it with {option('resume', 'resume=True')}, "
                f"or choose another {option('output')}."
            )

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint after `step` optimizer steps."""
        return self.checkpoints / f"step-{step:06d}"

    def steps(self) -> list[int]:
        """Steps with a checkpoint folder, ascending (whole or damaged)."""
        return _steps(self.checkpoints)

    def left_evaluation(self, step: int) -> Path:
        """Evaluation files of a checkpoint that was deleted."""
        return self.path / "evaluation" / f"step-{step:06d}"

    def left_samples(self, step: int) -> Path:
        """Pictures of a checkpoint that was deleted."""
        return self.path / "samples" / f"step-{step:06d}"

    def left_steps(self) -> list[int]:
        """Steps whose checkpoint was deleted and left evaluation files or pictures behind, ascending."""
        return sorted({*_steps(self.path / "evaluation"), *_steps(self.path / "samples")})

    def pointer(self, name: str) -> Path | None:
        """Checkpoint that `latest` or `best` names, if it exists."""
        file = self.checkpoints / name
        if not file.is_file():
            return None
        step = _STEP.fullmatch(file.read_bytes()[:64].decode("utf-8", errors="replace").strip())
        target = None if step is None else self.checkpoints / step[0]
        return target if target is not None and target.is_dir() else None

    def lacks(self, name: str) -> bool:
        """Whether the file of this name is there and leads nowhere."""
        return (self.checkpoints / name).is_file() and self.pointer(name) is None

    def point(self, name: str, step: int) -> None:
        """Let `latest` or `best` name the checkpoint of `step`."""
        write_text(self.checkpoints / name, f"step-{step:06d}\n")


def picture_places(picture: Path) -> tuple[Path, ...]:
    """Where a picture of a checkpoint is, while the checkpoint is deleted, and after that, in the order of time."""
    for place in picture.parents:
        if _STEP.fullmatch(place.name) and place.parent.name == "checkpoints":
            gone = place.with_name(f"{GONE}{place.name.removeprefix('step-')}")
            left = RunDirectory(place.parent.parent).left_samples(int(place.name.removeprefix("step-")))
            return picture, gone / picture.relative_to(place), left / picture.relative_to(place / "samples")
    return (picture,)


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    found = (_STEP.fullmatch(path.name) for path in folder.iterdir() if path.is_dir())
    return sorted(int(match[1]) for match in found if match)


def _is_step(line: str) -> bool:
    """Whether a line of the log is an optimizer step; evaluations and notices name themselves."""
    return '"step":' in line and '"notice":' not in line and '"evaluation":' not in line


def vacant(path: Path) -> Path:
    """`path`, or where a run lies there already, `path-2`, `path-3` and so on."""
    number = 1
    while RunDirectory(numbered(path, number)).used:
        number += 1
    return numbered(path, number)


def newest(path: Path) -> Path:
    """The last of `path`, `path-2`, `path-3` and so on that holds a run; `path` if none does."""
    number = 1
    while RunDirectory(numbered(path, number + 1)).used:
        number += 1
    return numbered(path, number)


def numbered(path: Path, number: int) -> Path:
    """The `number`-th run of the same name."""
    return path if number == 1 else path.with_name(f"{path.name}-{number}")


def default_output(recipe: Recipe, name: str) -> Path:
    """A run directory that says what differs between the runs of a recipe, so that none overwrites another."""
    settings = (
        f"{recipe.method.short}-lr{recipe.optimizer.learning_rate:g}-eta{recipe.schedule.eta:g}"
        f"-cfg{recipe.guidance.guidance_scale:g}-seed{recipe.training.seed}"
    )
    return Path("runs") / f"{name}-{settings}-{identity(recipe)}"


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None if every file matches its manifest.

    Raises:
        UsageError: a newer amsd wrote it.
    """
    try:
        manifest = read_manifest(checkpoint)
    except RunError as error:
        return str(error)
    for name, expected in manifest.files.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if sha256(file) != expected:
            return f"{name} does not match its sha256"
    return None


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself."""

    step: int
    weights_sha256: str
    files: Mapping[str, str]
    """sha256 by relative path."""


def read_manifest(checkpoint: Path) -> Manifest:
    """The manifest of a checkpoint, in this format or an older one (without the key `format`).

    Raises:
        RunError: it is missing or damaged; the text names manifest.json only.
        PermissionError: this user may not read it.
        UsageError: a newer amsd wrote it.
    """
    file = checkpoint / "manifest.json"
    if not file.is_file():
        raise RunError("manifest.json is missing")
    try:
        data = parsed_object(file.read_bytes())
        written = int(data.get("format", 1))
        if written > FORMAT:
            raise UsageError(f"{file}: its format {written} is newer than this amsd reads ({FORMAT}); update amsd.")
        files = {str(name): str(expected) for name, expected in data["files"].items()}
        step, weights = data["step"], data["weights_sha256"]
        if not isinstance(step, int) or not isinstance(weights, str) or not _safe(files):
            raise ValueError("an entry has another type")
        return Manifest(step, weights, files)
    except PermissionError:  # nothing is wrong with the checkpoint: an older one is no way out
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise RunError(f"manifest.json cannot be read ({type(error).__name__}: {error})") from error


def _safe(files: Mapping[str, str]) -> bool:
    """Whether there are files, and all lie inside the checkpoint."""
    return bool(files) and not any(Path(name).is_absolute() or ".." in Path(name).parts for name in files)


def resolve_checkpoint(path: Path | str) -> Path:
    """The checkpoint folder that a user means: itself, a run (its `best`, else `latest`), or `RUN/checkpoints/best`.

    Where those two files are lost or damaged, it is the newest one, which is said.

    Raises:
        UsageError: there is none there.
    """
    path = Path(path)
    if path.is_file() and path.name in ("best", "latest"):
        path = RunDirectory(path.parent.parent).pointer(path.name) or path
    if (path / "manifest.json").is_file():
        return path
    run = RunDirectory(path)
    found = run.pointer("best") or run.pointer("latest")
    lost = [str(run.checkpoints / name) for name in ("best", "latest") if run.lacks(name)]
    if found is None:
        known = map(run.checkpoint, reversed(run.steps()))
        found = next((each for each in known if (each / "manifest.json").is_file()), None)
        lost = lost or [str(run.checkpoints / "latest")]
    if found is not None and lost:
        _LOG.warning("%s does not name a checkpoint; amsd takes %s.", " and ".join(lost), found.name)
    if found is None:
        raise UsageError(f"{path}: no checkpoint there (expected a folder with manifest.json, or a run directory)")
    return found


def recipe_of(checkpoint: Path) -> Path:
    """The resolved recipe of the run that a checkpoint belongs to (`RUN/recipe.toml`).

    Raises:
        UsageError: the checkpoint was moved out of its run.
    """
    for candidate in (checkpoint / "recipe.toml", checkpoint.parent.parent / "recipe.toml"):
        if candidate.is_file():
            return candidate
    raise UsageError(f"{checkpoint}: its recipe.toml is missing; give one with {option('recipe')}")
