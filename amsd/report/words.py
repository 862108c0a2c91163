"""Sentences that a report opens with: what was found, what was set, what must be known before one believes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from amsd.recipe import Recipe
from amsd.report.evaluations import Metric
from amsd.report.figures.scale import number
from amsd.report.numbers import difference, duration, p_value, with_error
from amsd.report.seeds import by_trial, over_seeds
from amsd.report.story import Entry, Story, base_metric, points, shown_settings

#: Kinds of notices that call the results themselves into question.
ALARMS = ("reward-hacking", "failed", "not-finite")


@dataclass(frozen=True)
class Said:
    """A notice of one run, or of several that said the same."""

    kind: str
    text: str
    where: str
    alarm: bool


def standfirst(story: Story) -> str:
    """One or two sentences with the main result and its uncertainty."""
    best = _best(story)
    if best is None:
        return "No checkpoint has been evaluated yet."
    entry, reward, diversity, runs = best
    if story.kind == "run":
        step = points(story, story.runs[0])[-1].step
        text = f"After {step} updates the mean {story.reward} is {with_error(reward)}"
    else:
        mode = f" ({entry.mode.name})" if entry.mode else ""
        text = f"The highest mean {story.reward} is {with_error(reward)}, by trial {entry.trial}{mode}"
        text += f" over {runs} training seeds" if runs > 1 else ""
    text += _against(story, entry, reward) + "."
    if diversity is not None and diversity.paired is not None:
        text += f" Diversity changed by {_change(diversity)}."
    return text


def _against(story: Story, entry: Entry, reward: Metric) -> str:
    base = base_metric(story, entry.run, story.reward) if entry.run is not None else None
    if reward.paired is None or base is None:
        return ""
    return f"; the base model has {with_error(base)}, a paired difference of {_change(reward)}"


def _change(metric: Metric) -> str:
    assert metric.paired is not None
    test = f" ({p_value(metric.paired.p_value)})" if metric.paired.p_value is not None else ""
    return difference(metric.paired) + test


def _best(story: Story) -> tuple[Entry, Metric, Metric | None, int] | None:
    """Reward and diversity at the last evaluated checkpoint; of a sweep, of the trial with the highest mean reward."""
    if story.kind == "run":
        found = points(story, story.runs[0])
        return (story.entries[0], found[-1].reward, found[-1].diversity, 1) if found else None
    candidates = []
    for group in by_trial(story).values():
        reward = over_seeds([point.reward for _, point in group])
        if reward is not None:
            candidates.append((group[0][0], reward, over_seeds([point.diversity for _, point in group]), len(group)))
    return max(candidates, key=lambda candidate: candidate[1].mean, default=None)


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
    method = {"am": "Adjoint Matching", "buffer-am": "Adjoint Matching from a buffer"}[recipe.method.name]
    rows: list[tuple[str, Any]] = [
        ("Model", f"{recipe.model.pretrained}, {recipe.model.parameterization} fine-tuning"),
        ("Method", method),
        ("Reward", rewards),
        ("Reward multiplier λ", number(recipe.method.reward_multiplier)),
        ("Guidance scale", number(guidance.guidance_scale)),
        ("Guided besides the sampler", " and ".join(roles) or ("–" if guidance.guidance_scale == 1 else "nothing")),
        ("Noise η", number(recipe.schedule.eta)),
        ("Sampler steps", recipe.schedule.num_inference_steps),
        ("Updates", recipe.training.steps),
        ("Trajectories per update", recipe.optimizer.prompts_per_step),
        ("Learning rate", number(recipe.optimizer.learning_rate)),
        ("Seed", recipe.training.seed),
    ]
    return [(name, str(value)) for name, value in rows]


def notices(story: Story) -> list[Said]:
    """Alarms first, then the others; the same words from several runs are said once, with the runs named."""
    heard: dict[tuple[str, str], list[str]] = {}
    for entry in story.entries:
        for notice in entry.run.notices if entry.run is not None else ():
            where = f"step {notice.step}" if story.kind == "run" else f"{entry.label}, step {notice.step}"
            heard.setdefault((notice.kind, notice.text), []).append(where)
    found = []
    for (kind, text), places in heard.items():
        where = "; ".join(places[:4]) + (f"; and {len(places) - 4} more" if len(places) > 4 else "")
        found.append(Said(kind, text, where, kind in ALARMS))
    return sorted(found, key=lambda said: not said.alarm)
