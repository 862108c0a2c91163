"""Who won, and by how much: the sentences that a report opens with."""

from __future__ import annotations

from dataclasses import dataclass

from amsd.evaluation.result import Metric, Paired
from amsd.report.numbers import counted, difference, p_value, plain, with_error
from amsd.report.seeds import between, by_trial, over_seeds
from amsd.report.story import ShownRun, Story, base_metric, points, setting_of

#: p-value of the paired test below which a title calls a change a change.
CERTAIN = 0.05


@dataclass(frozen=True)
class Standing:
    """A trial (or the run) at its last evaluated checkpoints, over its seeds."""

    entry: ShownRun
    """Of the first seed."""
    rewards: tuple[Metric, ...]
    """One of each training seed, never none."""
    diversity: Metric | None

    @property
    def reward(self) -> Metric:
        """Over the seeds."""
        found = over_seeds(self.rewards)
        assert found is not None
        return found

    @property
    def runs(self) -> int:
        """Training seeds."""
        return len(self.rewards)

    @property
    def name(self) -> str:
        """As sentences call it."""
        return self.entry.group.name if self.entry.group is not None else f"trial {self.entry.trial}"


def headline(story: Story) -> str:
    """The result in one sentence, for the title of a report."""
    ranked = standings(story)
    if not ranked:
        return f"Nothing has been evaluated yet in this {story.kind}"
    best = ranked[0]
    if story.kind == "comparison" and len(ranked) > 1:
        return _compared(story, best, ranked[1])
    if story.kind == "sweep":
        trials = counted(len({entry.trial for entry in story.entries}), "trial")
        return f"Of {trials}, trial {best.entry.trial} has the highest {story.reward}: {with_error(best.reward)}"
    paired = best.reward.paired
    if paired is None:
        return f"Fine-tuning reached a mean {story.reward} of {with_error(best.reward)}"
    certain = paired.p_value is not None and paired.p_value < CERTAIN
    if not certain:
        return f"No certain change of {story.reward}: {difference(paired)}"
    size = Paired(abs(paired.difference), paired.standard_error, paired.p_value)
    verb = "raised" if paired.difference > 0 else "lowered"
    return f"Fine-tuning {verb} {story.reward} by {difference(size).removeprefix('+')}"


def _compared(story: Story, best: Standing, other: Standing) -> str:
    gap = ahead(story, best, other)
    error = gap.standard_error
    certain = gap.p_value < CERTAIN if gap.p_value is not None else error is not None and gap.difference > 2 * error
    if not certain:
        return f"No certain difference in {story.reward} between {best.name} and {other.name}"
    return f"{best.name} has the highest {story.reward}: {with_error(best.reward)}"


def standfirst(story: Story) -> str:
    """Two or three sentences with the main result and its uncertainty."""
    ranked = standings(story)
    if not ranked:
        return "No checkpoint has been evaluated yet."
    best = ranked[0]
    if story.kind == "run":
        step = points(story, story.runs[0])[-1].step
        text = f"After {step} updates the mean {story.reward} is {with_error(best.reward)}"
    else:
        among = " among trials that meet the constraints" if story.constraints else ""
        text = f"The highest mean {story.reward}{among} is {with_error(best.reward)}, by {best.name}"
        settings = _settings(best.entry)
        text += f" ({settings})" if settings else ""
        text += f" over {best.runs} training seeds" if best.runs > 1 else ""
    text += _against_base(story, best) + "."
    if best.diversity is not None and best.diversity.paired is not None:
        text += f" Diversity changed by {_change(best.diversity.paired)}."
    if len(ranked) > 1:
        text += f" {_against_next(story, best, ranked[1])}"
    return text


def standings(story: Story) -> list[Standing]:
    """The run; or the trials that keep every constraint, highest mean reward first."""
    if story.kind == "run":
        found = points(story, story.runs[0])
        return [Standing(story.entries[0], (found[-1].reward,), found[-1].diversity)] if found else []
    ranked = []
    for group in by_trial(story).values():
        if group[0][0].feasible:
            diversity = over_seeds([point.diversity for _, point in group])
            ranked.append(Standing(group[0][0], tuple(point.reward for _, point in group), diversity))
    return sorted(ranked, key=lambda standing: -standing.reward.mean)


def ahead(story: Story, best: Standing, other: Standing) -> Paired:
    """How far one trial lies above another.

    Runs of one seed are compared prompt by prompt, where both have the same prompts and noise; trials of several
    seeds by their means over seeds, with Welch's t-test.
    """
    runs = (best.entry.run, other.entry.run)
    alike = runs[0] is not None and runs[1] is not None and len({setting_of(story, run) for run in runs if run}) == 1
    return between(best.rewards, other.rewards, alike)[0]


def _against_base(story: Story, best: Standing) -> str:
    base = base_metric(story, best.entry.run, story.reward) if best.entry.run is not None else None
    if best.reward.paired is None or base is None:
        return ""
    return f"; the base model has {with_error(base)}, a paired difference of {_change(best.reward.paired)}"


def _against_next(story: Story, best: Standing, other: Standing) -> str:
    gap = ahead(story, best, other)
    return f"The next best is {other.name}, {_change(gap).removeprefix('+')} below it."


def _settings(entry: ShownRun) -> str:
    """Guidance mode and searched values, as a reader would name the trial."""
    mode = [entry.mode.name] if entry.mode else []
    params = [f"{key.rpartition('.')[2]} = {plain(value)}" for key, value in entry.params.items() if value not in mode]
    return "; ".join([*mode, ", ".join(params)]) if params else "".join(mode)


def _change(paired: Paired) -> str:
    test = f" ({p_value(paired.p_value)})" if paired.p_value is not None else ""
    return difference(paired) + test
