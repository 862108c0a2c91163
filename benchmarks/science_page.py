"""`docs/science.md` from the runs of `benchmarks/science.py`."""

from __future__ import annotations

from pathlib import Path

from science import ALIGNMENT, DIVERSITY, EXPERIMENTS, REWARD, Outcome, assignments, outcomes, seconds_per_update

from amsd.recipe import load_recipe
from amsd.recipe.cost import forwards_per_step

HEAD = """# What was measured on the embedded model

Made by one command, which anyone can repeat (on two CPU cores it takes about an hour and a half; finished runs are skipped):

    python benchmarks/science.py runs/science

Recipe `shapes` with the changes named; held-out prompts, 8 samples each, common noise. "Gain" is the paired difference of the trained reward
(`shapes:right`, bounded in [-1, 1]) to the base model. Errors are standard errors of the mean over the seeds given, between seeds and within
prompts combined. Runs this short are not converged: they compare settings, they do not measure fixed points.
"""
READING = {
    "lambda": (
        "Reward rises with λ, as the reference's table says (λ = 10, 31.6, 100: ImageReward .342, .555, .787). "
        "Its fall of diversity (DreamSim variance .377, .363, .336) is **not** seen here: the variance of the classifier's features stays, and rises "
        "at λ = 125, where alignment with the caption falls. Objects that leave their caption spread these features; they are not a "
        "perceptual diversity."
    ),
    "cfg-modes": (
        "The reference reports CFG trajectories as great in practice, no guidance as moderate and full CFG as poor. This is **not** the order "
        "here: after 24 updates fine-tuning without guidance gains about twice as much as either guided mode, at both noise levels, "
        "and the two guided modes do not differ. A model of this size need not rank the modes as SD 1.5 does."
    ),
    "buffer": "The buffer's updates cost a fraction of on-policy updates, at the same number of trajectories per update.",
    "eta": (
        "All are evaluated with the sampler at η = 1. Below 1 the sampler is not memoryless, and the bias of method.md applies."
    ),
    "adjoint": (
        "The bias of a_k (closed form: -46%, -29%, -16%, -7% of the shift at N = 5, 10, 20, 50) is a smaller gain at equal updates."
    ),
}


def write_page(out: Path, page: Path) -> None:
    """Write the page and its plot; experiments without finished runs are named as such."""
    parts = [HEAD]
    for name, experiment in EXPERIMENTS.items():
        parts.append(f"\n## {experiment.title}\n")
        found = dict(outcomes(out, name))
        if not found:
            parts.append("Not run yet.\n")
            continue
        parts += _tables(out, name)
        if name == "buffer":
            parts.append(_cost(out))
        parts.append("\n" + READING[name] + "\n")
    if dict(outcomes(out, "lambda")):
        _plot(out, page.parent / "images" / "lambda.svg")
        parts.insert(2, "\n![Reward and diversity against lambda](images/lambda.svg)\n")
    page.write_text("".join(parts), encoding="utf-8")


def _tables(out: Path, name: str) -> list[str]:
    common = EXPERIMENTS[name].common
    etas = common.get("evaluation.eta", [1.0])
    parts = []
    for eta in etas:
        if len(etas) > 1:
            parts.append(f"\nEvaluated at η = {eta:g}:\n")
        parts.append(
            "\n| setting | seeds | gain | reward | alignment | diversity, change |\n|---|---|---|---|---|---|\n"
        )
        for setting, metrics in outcomes(out, name, f"eta{eta:g}-"):
            reward = metrics[REWARD]
            parts.append(
                f"| {setting} | {reward.seeds} | {_gain(reward)} | {_value(reward)} | {_value(metrics[ALIGNMENT])} "
                f"| {_gain(metrics[DIVERSITY])} |\n"
            )
    return parts


def _cost(out: Path) -> str:
    lines = ["\n| setting | UNet forward-equivalents per update | seconds per update |\n|---|---|---|\n"]
    for setting in EXPERIMENTS["buffer"].settings:
        each, _ = seconds_per_update(out, "buffer", setting)
        recipe = load_recipe("shapes", assignments(EXPERIMENTS["buffer"], setting, 0))
        lines.append(f"| {setting} | {forwards_per_step(recipe):,.0f} | {each:.2f} |\n")
    return "".join(lines)


def _value(outcome: Outcome) -> str:
    return f"{outcome.value:.3f} ± {outcome.value_error:.3f}"


def _gain(outcome: Outcome) -> str:
    return f"{outcome.difference:+.3f} ± {outcome.difference_error:.3f}"


def _plot(out: Path, file: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "amsd"
    import matplotlib.pyplot as plt

    found = dict(outcomes(out, "lambda"))
    values = [float(setting.removeprefix("λ = ")) for setting in found]
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for axis, metric, label in ((axes[0], REWARD, "gain in reward"), (axes[1], DIVERSITY, "change in diversity")):
        chosen = [metrics[metric] for metrics in found.values()]
        axis.errorbar(
            values, [o.difference for o in chosen], yerr=[o.difference_error for o in chosen], marker="o", capsize=3,
            color="#0072B2",
        )  # fmt: skip
        axis.axhline(0, color="#999999", linewidth=0.8)
        axis.set(xscale="log", xlabel="reward multiplier λ", ylabel=label)
        axis.spines[["top", "right"]].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)
