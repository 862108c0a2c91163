"""Does fine-tuning reach the distribution it aims at? `python benchmarks/importance.py OUT` on the embedded model.

For a small lambda the target p(x) exp(lambda r(x)) / Z can be measured without training: self-normalised importance
weights exp(lambda r) on samples of the base model give its mean reward. A model fine-tuned to convergence at that
lambda must have the same mean reward within the standard error of both, if its loss was minimised and if the steps are
short enough: a policy shifts the mean of each step, which is an exact tilt only for short steps (benchmarks/reach.py
says how far that goes).

The area of big objects fulfils both: it is decided late, where steps are short, and varies continuously. Where objects
are (`--reward shapes:right --multiplier 3`) is decided early, so N = 10 is too few; where small ones are (`--word
small`) is a choice between separate places, of which a lean adjoint sees little (docs/method.md, section 8).

Base and fine-tuned model are sampled by the recipe's own sampler, on the prompts that are trained on, so neither
guidance nor generalisation to new prompts enters. OUT/importance.json and importance.md hold the figures; a finished
training is not repeated.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from amsd.diffusion.noise import normal
from amsd.diffusion.rollout import rollout
from amsd.experiment.setup import build_accelerator, build_problem, load_policy
from amsd.experiment.train import train
from amsd.matching import effective_sample_size, self_normalized_weights
from amsd.prompts import load_prompts
from amsd.recipe import Recipe, load_recipe
from amsd.run_directory import RunDirectory
from amsd.training.problem import ControlProblem

BATCH = 64
"""Trajectories sampled at once for the figures."""


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts of a mean over each prompt's samples; the prompts are fixed, so only samples vary."""

    mean: float
    standard_error: float
    by_prompt: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """One fine-tuned model against what the importance weights say."""

    seed: int
    base: Estimate
    importance: Estimate
    ess: float
    """Effective sample size of the weights, normalised, mean over prompts."""
    finetuned: Estimate
    difference: float
    """Fine-tuned minus importance-weighted mean reward."""
    difference_error: float
    reached: float
    """Share of the shift from the base to the target that fine-tuning made."""
    by_prompt_chi2: float
    """Sum over prompts of squared differences in standard errors; its expectation is the number of prompts."""
    seconds: float

    @property
    def z(self) -> float:
        """Difference in standard errors."""
        return self.difference / self.difference_error


def plain(rewards: Tensor) -> Estimate:
    """Estimate from samples (P, n) as they are."""
    return _estimate(rewards.mean(1), rewards.var(1) / rewards.shape[1])


def weighted(rewards: Tensor, multiplier: float) -> tuple[Estimate, float]:
    """Self-normalised importance-sampling estimate of the tilted mean from base samples (P, n), and ESS/n.

    Variance of a prompt's estimate: sum of w^2 (r - mean)^2 over normalised weights w (delta method).
    """
    logarithms = multiplier * rewards
    weights = self_normalized_weights(logarithms) / rewards.shape[1]
    means = (weights * rewards).sum(1)
    variances = (weights.square() * (rewards - means[:, None]).square()).sum(1)
    return _estimate(means, variances), float(effective_sample_size(logarithms).mean() / rewards.shape[1])


def _estimate(means: Tensor, variances: Tensor) -> Estimate:
    return Estimate(float(means.mean()), float(variances.sum().sqrt()) / len(means), tuple(means.tolist()))


def compare(seed: int, base: Tensor, finetuned: Tensor, multiplier: float, seconds: float) -> Comparison:
    """Figures from rewards (P, n) of the base model and of the fine-tuned one, on independent noise."""
    target, ess = weighted(base, multiplier)
    before, after = plain(base), plain(finetuned)
    difference = after.mean - target.mean
    # Per prompt, so that a shortfall on one and an excess on another do not cancel.
    chi2 = 0.0
    for one, other in zip(base[:, None], finetuned[:, None], strict=True):
        expected, found = weighted(one, multiplier)[0], plain(other)
        chi2 += (found.mean - expected.mean) ** 2 / (found.standard_error**2 + expected.standard_error**2)
    return Comparison(
        seed, before, target, ess, after, difference, math.hypot(target.standard_error, after.standard_error),
        (after.mean - before.mean) / (target.mean - before.mean), chi2, seconds,
    )  # fmt: skip


@torch.no_grad()
def rewards(problem: ControlProblem, prompts: Sequence[str], count: int, name: str) -> Tensor:
    """Rewards (P, count), float64, of the policy's samples as the recipe samples them; noise keyed by `name`."""
    keys = [(problem.recipe.training.seed, name, p, i) for p in range(len(prompts)) for i in range(count)]
    shape = (len(problem.steps) + 1, *problem.adapter.latent_shape)
    scores = []
    for start in range(0, len(keys), BATCH):
        part = keys[start : start + BATCH]
        texts = [prompts[int(key[2])] for key in part]
        predict = problem.finetuned(problem.encode(texts), problem.recipe.guidance.guidance_scale)
        terminal = rollout(predict, problem.steps, normal(part, shape, problem.device, torch.float32)).terminal
        scores.append(problem.reward(problem.adapter.decode(terminal).clamp(0, 1), texts).total.double().cpu())
    return torch.cat(scores).view(len(prompts), count)


@dataclass(frozen=True)
class Setting:
    """What is compared."""

    reward: str
    multiplier: float
    word: str
    prompts: int
    inference_steps: int
    steps: int
    assignments: tuple[str, ...]

    def recipe(self, seed: int) -> Recipe:
        """The recipe `shapes`, made to converge: no mask (it is a bias), small and decaying learning rate."""
        prompts = json.dumps(prompts_with(self.word, self.prompts), ensure_ascii=False)
        return load_recipe(
            "shapes",
            [
                f"reward=[{{name = {json.dumps(self.reward)}}}]",
                f"schedule.num_inference_steps={self.inference_steps}",
                f"method.reward_multiplier={self.multiplier}",
                "method.per_sample_threshold_quantile=-1.0",
                "method.timesteps_per_trajectory=8",
                f"prompts.train={prompts}",
                f"prompts.evaluation={prompts}",
                "method.name=buffer-am",
                "method.buffer.size=128",
                "method.buffer.passes=4",
                "optimizer.learning_rate=2e-4",
                "optimizer.betas=[0.9, 0.99]",
                "optimizer.gradient_clip=0.0",
                "optimizer.schedule=cosine",
                "optimizer.weight_decay=0.0",
                "optimizer.warmup_steps=10",
                "evaluation.every=0",
                "tracking.mode=disabled",
                f"training.steps={self.steps}",
                f"training.checkpoint_every={min(self.steps, 120)}",
                f"training.seed={seed}",
                *self.assignments,
            ],
        )


def prompts_with(word: str, count: int) -> list[str]:
    """Prompts of the embedded training set that contain a word, spread over the set."""
    every = [text for text in load_prompts("embedded:shapes", "train").texts if word in text.split() or not word]
    if not every:
        raise typer.BadParameter(f"no training prompt contains {word!r}")
    return [every[index * len(every) // count] for index in range(count)]


def fit(recipe: Recipe, run: RunDirectory) -> float:
    """Train unless that was done; seconds of training."""
    if recipe.training.steps not in run.steps():
        train(recipe, run.path, resume=run.recipe.is_file())
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return float(sum(line.get("seconds/total", 0.0) for line in lines))


def sampled(recipe: Recipe, checkpoint: Path | None, count: int, name: str) -> Tensor:
    """Rewards of the base model (no checkpoint: an unchanged policy) or of a fine-tuned one."""
    accelerator = build_accelerator(recipe)
    prompts = load_prompts(recipe.prompts.train, "train").texts
    problem = build_problem(recipe, accelerator, load_policy(recipe, accelerator.device, checkpoint), prompts)
    return rewards(problem, prompts, count, name)


def main(
    out: Annotated[Path, typer.Argument(help="Folder for runs and figures.")],
    reward: Annotated[str, typer.Option(help="Name of the reward.")] = "shapes:area",
    multiplier: Annotated[float, typer.Option(help="Lambda.")] = 30.0,
    word: Annotated[str, typer.Option(help="Word that the prompts contain; empty: any prompt.")] = "big",
    prompts: Annotated[int, typer.Option(help="Prompts, trained and evaluated on.")] = 8,
    inference_steps: Annotated[int, typer.Option(help="Steps N of the sampler.")] = 10,
    samples: Annotated[int, typer.Option(help="Samples per prompt of each model.")] = 256,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 480,
    seeds: Annotated[int, typer.Option(min=1)] = 1,
    first_seed: Annotated[int, typer.Option(min=0, help="To share seeds among processes.")] = 0,
    assignments: Annotated[list[str] | None, typer.Option("--set", help="key=value of the recipe.")] = None,
) -> None:
    """Measure, train, measure again, compare."""
    out.mkdir(parents=True, exist_ok=True)
    setting = Setting(reward, multiplier, word, prompts, inference_steps, steps, tuple(assignments or ()))
    first = setting.recipe(first_seed)
    start = time.monotonic()
    base = sampled(first, None, samples, "base")
    target, ess = weighted(base, multiplier)
    typer.echo(
        f"base {plain(base).mean:.4f} ± {plain(base).standard_error:.4f}, target {target.mean:.4f} ± "
        f"{target.standard_error:.4f}, ESS/n {ess:.2f} ({time.monotonic() - start:.0f} s)"
    )
    found = []
    for seed in range(first_seed, first_seed + seeds):
        recipe = setting.recipe(seed)
        run = RunDirectory(out / f"seed-{seed}")
        seconds = fit(recipe, run)
        tuned = sampled(recipe, run.checkpoint(recipe.training.steps), samples, "finetuned")
        found.append(compare(seed, base, tuned, multiplier, seconds))
        _write(out, multiplier, first, found)
        typer.echo((out / "importance.md").read_text(encoding="utf-8"))


def _write(out: Path, multiplier: float, recipe: Recipe, found: Sequence[Comparison]) -> None:
    data = {
        "multiplier": multiplier,
        "recipe": recipe.model_dump(mode="json"),
        "comparisons": [asdict(comparison) | {"z": comparison.z} for comparison in found],
    }
    (out / "importance.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    rows = [
        "| λ | seed | base | importance sampling | ESS/n | fine-tuned | difference | z | shift made | χ² by prompt |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    rows += [
        f"| {multiplier:g} | {c.seed} | {_shown(c.base)} | {_shown(c.importance)} | {c.ess:.2f} "
        f"| {_shown(c.finetuned)} | {c.difference:+.4f} ± {c.difference_error:.4f} | {c.z:+.1f} | {c.reached:.1%} "
        f"| {c.by_prompt_chi2:.1f} of {len(c.base.by_prompt)} |"
        for c in found
    ]
    (out / "importance.md").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _shown(estimate: Estimate) -> str:
    return f"{estimate.mean:.4f} ± {estimate.standard_error:.4f}"


if __name__ == "__main__":
    typer.run(main)
