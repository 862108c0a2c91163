"""Names of rewards and embedders in recipes, resolved lazily through one table.

A name is a key of the table, `pyiqa:METRIC`, `python:MODULE:FUNCTION` (a user's own function), the URL of a reward
server or an entry point of the group `amsd.rewards`. Nothing is imported before a name is resolved.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, cast

from amsd.errors import AmsdError, UsageError, nearest
from amsd.plugins import Seam
from amsd.reading import is_shortage, reason_of
from amsd.recipe import Evaluation
from amsd.recipe.schema import CodeFile

if TYPE_CHECKING:  # the protocols import torch; names alone do not need it
    from amsd.rewards.protocol import Embedder, Reward


@dataclass(frozen=True)
class Row:
    """What is known of a reward or an embedder without importing it."""

    target: str
    """`module:attribute` of its factory, which takes the options of the recipe as keywords and returns the scorer."""
    sees: str
    """What it sees a picture with: rewards of one kind are deceived alike, so one of them does not check another."""
    license: str | None = None
    """Of the weights, as their publisher states it."""
    gigabytes: float | None = None
    """Size of the default weights, where they have to be downloaded."""
    gradient: bool = True
    """Whether its scores can be differentiated with respect to the images."""
    weights: str | None = None
    """Where the default weights lie, if another row has them too: they are downloaded once."""


_CLIP = "openai/clip-vit-large-patch14"
_OWN = "MIT, part of amsd"

REWARDS: dict[str, Row] = {
    "imagereward": Row("amsd.rewards.imagereward:ImageReward", "BLIP", "Apache-2.0", 1.8),
    "clip-score": Row("amsd.rewards.clip_score:CLIPScore", "CLIP", "MIT", 1.7, weights=_CLIP),
    "pickscore": Row("amsd.rewards.pickscore:PickScore", "CLIP", "MIT", 3.9),
    "hps-v2.1": Row("amsd.rewards.hps:HPSv21", "CLIP", "Apache-2.0", 2.0),
    "laion-aesthetic": Row("amsd.rewards.aesthetic:LaionAesthetic", "CLIP", "Apache-2.0", 1.7, weights=_CLIP),
    "brightness": Row("amsd.rewards.simple:Brightness", "pixels", _OWN),
    "colorfulness": Row("amsd.rewards.simple:Colorfulness", "pixels", _OWN),
    "shapes:right": Row("amsd.shapes.rewards:RightReward", "pixels", _OWN),
    "shapes:area": Row("amsd.shapes.rewards:AreaReward", "pixels", _OWN),
    "shapes:roundness": Row("amsd.shapes.rewards:RoundnessReward", "pixels", _OWN),
    "shapes:alignment": Row("amsd.shapes.rewards:AlignmentReward", "shapes classifier", _OWN),
    "shapes:color": Row("amsd.shapes.rewards:color_accuracy", "shapes classifier", _OWN, gradient=False),
    "shapes:shape": Row("amsd.shapes.rewards:shape_accuracy", "shapes classifier", _OWN, gradient=False),
    "shapes:form": Row("amsd.shapes.rewards:form_accuracy", "shapes classifier", _OWN, gradient=False),
    "shapes:accuracy": Row("amsd.shapes.rewards:whole_accuracy", "shapes classifier", _OWN, gradient=False),
    "colourfulness": Row("amsd.rewards.simple:FormerColorfulness", "pixels", _OWN),
    "shapes:colour": Row("amsd.shapes.rewards:former_color_accuracy", "shapes classifier", _OWN, gradient=False),
}
"""The rewards that ship with amsd, by name."""

FORMER = frozenset({"colourfulness", "shapes:colour"})
"""Names of before, so that older recipes still load; no list shows them."""


@dataclass(frozen=True)
class FamilyRow:
    """A whole family of rewards, known by what stands before the first colon of a name."""

    target: str
    """`module:attribute` of the factory, which takes what follows the colon as its first argument."""
    example: str
    """How a name of it looks."""
    gradient: bool = True
    """Whether a reward of it can have a gradient."""
    without: frozenset[str] = frozenset()
    """Members that have none."""
    license: str | None = None
    """Of all its members."""
    gigabytes: Mapping[str, float] = field(default_factory=dict)
    """Size of the weights of members, as far as it is known."""


FAMILIES: dict[str, FamilyRow] = {
    "pyiqa": FamilyRow(
        "amsd.rewards.pyiqa:PyIQAReward",
        "pyiqa:METRIC",
        without=frozenset({"entropy", "piqe"}),
        license="pyiqa is PolyForm-Noncommercial: no commercial use; its metrics' weights have licenses of their own",
        gigabytes={"musiq": 0.1},
    ),
    "python": FamilyRow("amsd.rewards.user:FunctionReward", "python:MODULE:FUNCTION"),
    "http": FamilyRow("amsd.rewards.server:HTTPReward", "http://HOST:PORT/PATH", gradient=False),
    "https": FamilyRow("amsd.rewards.server:HTTPSReward", "https://HOST/PATH", gradient=False),
}
"""Families by what stands before the first colon."""

EMBEDDERS: dict[str, Row] = {
    "pixels": Row("amsd.rewards.embedders:PixelEmbedder", "pixels"),
    "clip": Row("amsd.rewards.embedders:CLIPEmbedder", "CLIP", gigabytes=1.7, weights=_CLIP),
    "dreamsim": Row("amsd.rewards.embedders:DreamSimEmbedder", "DreamSim", gigabytes=1.8),
    "shapes:classifier": Row("amsd.shapes.rewards:ShapesEmbedder", "shapes classifier"),
}
"""The embedders that ship with amsd, by name."""

_EMBEDDERS = Seam("an embedder", "amsd.embedders", {name: row.target for name, row in EMBEDDERS.items()})


def _rewards() -> Seam:
    """Rewards that have a name of their own."""
    patterns = tuple(row.example for row in FAMILIES.values())
    return Seam("a reward", "amsd.rewards", {name: row.target for name, row in REWARDS.items()}, FORMER, patterns)


def resolve_reward(
    name: str, options: Mapping[str, Any] | None = None, code: Mapping[str, CodeFile] | None = None
) -> Reward:
    """Build the reward of this name; its weights are loaded here, on the CPU. `code` says where `python:` files lie.

    Raises:
        UsageError: the name or an option is unknown, or the reward cannot be built from these options.
    """
    family, separator, rest = name.partition(":")
    if separator and family in FAMILIES:
        if not rest:
            raise UsageError(f"reward {name!r}: a name is missing after {family}:, as in {FAMILIES[family].example}")
        arguments = (rest, code) if family == "python" else (rest,)
        return cast("Reward", _build("reward", name, resolve_name(FAMILIES[family].target), arguments, options or {}))
    return cast("Reward", _whole("reward", name, _build("reward", name, _rewards().load(name), (), options or {})))


def resolve_embedder(name: str, options: Mapping[str, Any] | None = None) -> Embedder:
    """Build the embedder of this name; its weights are loaded here, on the CPU.

    Raises:
        UsageError: the name or an option is unknown, or the embedder cannot be built from these options.
    """
    built = _build("embedder", name, _EMBEDDERS.load(name), (), options or {})
    return cast("Embedder", _whole("embedder", name, built))


def require_known(rewards: Sequence[str], evaluation: Evaluation) -> None:
    """Check every scorer and embedder that a run will name, without importing what stands behind them.

    Raises:
        UsageError: a name is unknown.
    """
    _rewards().require(name for name in [*rewards, *evaluation.metrics] if name.partition(":")[0] not in FAMILIES)
    _EMBEDDERS.require([*evaluation.diversity, *evaluation.distance])


def has_gradient(name: str) -> bool | None:
    """Whether a reward can be differentiated, as far as its name says; None where only its code knows."""
    family, _, rest = name.partition(":")
    if name in REWARDS:
        return REWARDS[name].gradient
    if family in FAMILIES and family != "python":
        return FAMILIES[family].gradient and rest not in FAMILIES[family].without
    return None


def license_of(name: str) -> str | None:
    """What the publisher of a scorer's weights states; None where the table does not say."""
    row = REWARDS.get(name) or FAMILIES.get(name.partition(":")[0])
    return row.license if row is not None else None


def downloaded_gigabytes(name: str) -> float | None:
    """Size of the default weights of a reward or an embedder; None where nothing is downloaded or it is not known."""
    if (row := REWARDS.get(name) or EMBEDDERS.get(name)) is not None:
        return row.gigabytes
    family, _, member = name.partition(":")
    return FAMILIES[family].gigabytes.get(member) if family in FAMILIES else None


def shared_weights(name: str) -> str | None:
    """Where the default weights of a reward or an embedder lie, if others have them too."""
    row = REWARDS.get(name) or EMBEDDERS.get(name)
    return row.weights if row is not None else None


def related(name: str) -> str:
    """What a reward sees a picture with; a reward that is not in the table is of a kind of its own."""
    if name in REWARDS:
        return REWARDS[name].sees
    return name.partition(":")[0] if name.startswith("pyiqa:") else name


def unchecked(trained: Sequence[str], metrics: Sequence[str]) -> str | None:
    """Advice where no held-out metric sees pictures otherwise than the trained rewards do; None where one does."""
    kinds = {related(name) for name in trained}
    if any(related(name) not in kinds for name in metrics):
        return None
    options = [name for name in ("clip-score", "imagereward", "pyiqa:musiq") if related(name) not in kinds]
    shapes = all(name.startswith("shapes:") for name in trained)
    advice = "shapes:alignment" if shapes and "shapes classifier" not in kinds else options[0]
    return (
        f"All of evaluation.metrics is of the trained kind ({', '.join(sorted(kinds))}), so nothing would show reward "
        f"hacking. Add a metric of another kind, such as {advice!r}."
    )


def reward_names() -> list[str]:
    """Every name that `resolve_reward` knows, sorted; of a family only its pattern, such as `pyiqa:METRIC`."""
    return _rewards().shown()


def _build(
    kind: str, name: str, factory: Callable[..., Any], arguments: tuple[Any, ...], options: Mapping[str, Any]
) -> Any:
    signature = inspect.signature(factory)
    _check_options(kind, name, signature, len(arguments), options)
    given = ", ".join(f"{key} = {value!r}" for key, value in options.items())
    try:
        return factory(*arguments, **options)
    except AmsdError:
        raise
    except Exception as error:  # a scorer's package may raise anything while it reads its weights
        if is_shortage(error):
            raise
        raise UsageError(
            f"{kind} {name!r} cannot be built{f' with {given}' if given else ''}: {reason_of(error)}"
        ) from error


def _whole(kind: str, name: str, scorer: Any) -> Any:
    """The scorer, if it has all that amsd asks of one: the code of a package may lack something."""
    needed = {"name", "version", "__call__", "to", *(["truncated"] if kind == "reward" else [])}
    if lacking := sorted(needed - {*dir(scorer)}):
        raise UsageError(
            f"{kind} {name!r}: {type(scorer).__module__}.{type(scorer).__name__} has no {' and no '.join(lacking)}. "
            "docs/extending.md shows a whole one."
        )
    if not (isinstance(scorer.name, str) and isinstance(scorer.version, str)):
        raise UsageError(
            f"{kind} {name!r}: name = {scorer.name!r:.100} and version = {scorer.version!r:.100} of its class must be "
            "strings."
        )
    if scorer.name != name and name not in REWARDS and name not in EMBEDDERS:
        raise UsageError(f"{kind} {name!r}: its class calls itself {scorer.name!r}. Give both one name.")
    return scorer


def _check_options(
    kind: str, name: str, signature: inspect.Signature, positional: int, options: Mapping[str, Any]
) -> None:
    parameters = list(signature.parameters.values())[positional:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = {p.name: p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    for option in options:
        if option not in known:
            hint = nearest(option, list(known)) if known else "It takes no options."
            raise UsageError(f"{kind} {name!r} has no option {option!r}. {hint}")
    missing = [key for key, p in known.items() if p.default is p.empty and key not in options]
    if missing:
        raise UsageError(f"{kind} {name!r} needs the option {missing[0]!r}: set it under options in the recipe")
