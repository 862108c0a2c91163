"""What was set, and what must be known before one believes a report."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from amsd.places import in_text, in_value, places_of
from amsd.recipe import Recipe
from amsd.report.figures.scale import number
from amsd.report.numbers import duration
from amsd.report.story import ShownRun, Story, shown_settings
from amsd.training.events import Notice

#: Kinds of notices that call the results themselves into question.
ALARMS = ("reward-hacking", "failed", "not-finite")
#: An absolute path inside a sentence.
_PATH = re.compile(r"/[^\s`'\"]*[^\s`'\".,;:)]")


@dataclass(frozen=True)
class ShownNotice:
    """The notices of one kind."""

    kind: str
    text: str
    where: str
    alarm: bool
    aside: bool
    """Whether it concerns bookkeeping only, so that it need not stand in the reader's way."""
    others: tuple[tuple[str, str], ...] = ()
    """Where and what, of further notices of this kind."""


def facts(story: Story) -> list[tuple[str, str]]:
    """Names and values of what was set."""
    found = _sweep_facts(story) if story.kind == "sweep" else []
    recipes = [dict(_recipe_facts(run.recipe)) for run in story.runs if run.recipe is not None]
    for name, value in recipes[0].items() if recipes else ():
        if all(other[name] == value for other in recipes):  # what differs between runs stands in the search space
            found.append((name, value))
    settings = shown_settings(story)
    if settings:
        several = len(settings) > 1
        words = (f"{name} ({count} runs)" if several else name for name, count in settings.items())
        found.append(("Evaluated with", ", ".join(words)))
    return found


def _sweep_facts(story: Story) -> list[tuple[str, str]]:
    states: dict[str, set[int | None]] = {}
    for entry in story.entries:
        states.setdefault(entry.state, set()).add(entry.trial)
    seeds = sorted({entry.seed for entry in story.entries if entry.seed is not None})
    seconds = sum({entry.trial: entry.duration or 0.0 for entry in story.entries}.values())
    goals = ", ".join(f"{'maximize' if goal.maximize else 'minimize'} {goal.name}" for goal in story.objectives)
    counts = ", ".join(f"{len(trials)} {state}" for state, trials in states.items())
    return [
        ("Objectives", goals),
        *((("Constraints", ", ".join(story.constraints)),) if story.constraints else ()),
        ("Trials", counts or "none"),
        ("Seeds per trial", f"{len(seeds)} ({', '.join(map(str, seeds))})" if seeds else "–"),
        ("Time in trials", duration(seconds)),
    ]


def _recipe_facts(recipe: Recipe) -> list[tuple[str, str]]:
    guidance = recipe.guidance
    roles = [
        name
        for name, used in (
            ("adjoint", guidance.guidance_in_adjoint_computation),
            ("control", guidance.guidance_in_control_computation),
        )
        if used
    ]
    rewards = " + ".join(
        term.name if term.weight == 1 else f"{number(term.weight)} × {term.name}" for term in recipe.reward
    )
    rows: list[tuple[str, Any]] = [
        ("Model", f"{in_value(recipe.model.pretrained)}, {recipe.model.parameterization} fine-tuning"),
        ("Method", recipe.method.label),
        ("Reward", rewards),
        ("Reward multiplier λ", "–" if recipe.method.tilt is None else number(recipe.method.tilt)),
        ("Guidance scale", number(guidance.guidance_scale)),
        ("Guidance applies also to", " and ".join(roles) or ("–" if guidance.guidance_scale == 1 else "nothing")),
        ("Noise η", number(recipe.schedule.eta)),
        ("Sampler steps", recipe.schedule.num_inference_steps),
        ("Updates", recipe.training.steps),
        ("Trajectories per update", recipe.optimizer.prompts_per_step),
        ("Learning rate", number(recipe.optimizer.learning_rate)),
        ("Seed", recipe.training.seed),
    ]
    return [(name, str(value)) for name, value in rows]


def notices(story: Story) -> list[ShownNotice]:
    """One for each kind, alarms first, bookkeeping last; the same words from several runs are said once."""
    heard: dict[str, dict[str, list[tuple[ShownRun, Notice]]]] = {}
    for entry in story.entries:
        for notice in entry.run.notices if entry.run is not None else ():
            alike = heard.setdefault(notice.kind, {}).setdefault(_PATH.sub("", notice.text), [])
            alike.append((entry, notice))
    found = [_said(kind, list(texts.values()), story) for kind, texts in heard.items()]
    return sorted(found, key=lambda said: (said.aside, not said.alarm))


def _said(kind: str, groups: list[list[tuple[ShownRun, Notice]]], story: Story) -> ShownNotice:
    """Notices of one kind: the first text in full, the others below it; paths are relative, for reports are shared."""
    texts = [_in_common([_told(entry, notice, story) for entry, notice in group]) for group in groups]
    places = [_places(group, story) for group in groups]
    everywhere = _places([pair for group in groups for pair in group], story)
    first = places[0] if len(groups) == 1 or story.kind == "run" else everywhere
    others = tuple(zip(places[1:], texts[1:], strict=True))
    return ShownNotice(kind, texts[0], first, kind in ALARMS, kind.startswith("wandb"), others)


def _told(entry: ShownRun, notice: Notice, story: Story) -> str:
    recipe = entry.run.recipe if entry.run is not None else None
    return in_text(notice.text, [story.path, *(places_of(recipe) if recipe is not None else ())])


def _places(group: list[tuple[ShownRun, Notice]], story: Story) -> str:
    """`trials 5 and 6`, names of the runs of a comparison, or the steps of a single run."""
    if story.kind == "comparison":
        return ", ".join(dict.fromkeys(entry.label for entry, _ in group))
    if story.kind == "sweep":
        return _listed("trial", sorted({entry.trial for entry, _ in group if entry.trial is not None}))
    return _listed("step", sorted({notice.step for _, notice in group}))


def _listed(noun: str, numbers: list[int]) -> str:
    shown = [str(number) for number in numbers[:12]] + (["…"] if len(numbers) > 12 else [])
    return f"{noun}{'s' * (len(numbers) > 1)} {', '.join(shown)}"


def _in_common(texts: list[str]) -> str:
    """One text for several that differ in words, such as paths: what these share, and an ellipsis."""
    columns = zip(*(text.split(" ") for text in texts), strict=False)
    return " ".join(words[0] if len(set(words)) == 1 else _common(words) for words in columns)


def _common(words: tuple[str, ...]) -> str:
    folder = os.path.commonprefix(words).rpartition("/")  # noqa: RUF071  # not only whole names
    closing = re.search(r"\W*$", words[0])
    return f"{''.join(folder[:2])}…{closing[0] if closing else ''}"
