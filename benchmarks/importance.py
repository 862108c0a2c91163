"""Does fine-tuning reach the distribution it aims at? `python benchmarks/importance.py OUT` on the embedded models.

For a small lambda the target p(x) exp(lambda r(x)) / Z can be measured without training: self-normalized importance
weights exp(lambda r) on samples of the base model give its mean reward. A model fine-tuned to convergence at that
lambda must have the same mean reward within the standard error of that estimate, if its loss was minimized and if the
steps are short enough: a policy shifts the mean of each step, which is an exact tilt only for short steps
(benchmarks/reach.py says how far that goes).

Both models are sampled by the recipe's own sampler, on the prompts that are trained on and from the same noise. So
neither guidance nor generalization to new prompts enters, and most of the samples' scatter cancels in the difference
of the two figures, which shows shortfalls far below their own standard errors.

`--recipe flow` does it for the flow model.

The area of big objects varies continuously. Where small objects are (`--reward shapes:right --word small`) is a choice
between separate places, of which a lean adjoint sees little (docs/method.md, section 8).

OUT/importance.json and importance.md hold the figures of every seed measured there; what is done is not repeated, so
seeds can be shared among processes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from estimates import Estimate
from torch import Tensor

from amsd.diffusion.noise import normal
from amsd.diffusion.rollout import rollout
from amsd.evaluation.statistics import measured
from amsd.experiment.setup import build_accelerator, build_problem, load_policy
from amsd.experiment.train import train
from amsd.files import write_json, write_text
from amsd.matching import effective_sample_size, self_normalized_weights
from amsd.prompts import load_prompts
from amsd.recipe import Recipe, load_recipe
from amsd.run_directory import RunDirectory
from amsd.training.problem import ControlProblem

BATCH = 64
"""Trajectories sampled at once for the figures."""
_CONVERGES = {
    # The gradient is clipped at about three times its median, which holds back fewer than one batch in ten.
    "shapes": (
        "method.timesteps_per_trajectory=4", "method.buffer.passes=1", "optimizer.learning_rate=1e-4",
        "optimizer.gradient_clip=4.0",
    ),
    # The steps pull alike at the weights that they share.
    "flow": (
        "method.timesteps_per_trajectory=5", "method.buffer.passes=2", "optimizer.learning_rate=4e-4",
        "optimizer.gradient_clip=0.0", "method.step_weights=balanced",
    ),
}  # fmt: skip
"""What makes each model converge in few updates."""


@dataclass(frozen=True)
class AgainstWeights:
    """A fine-tuned model against what the importance weights say."""

    base: Estimate
    importance: Estimate
    ess: float
    """Effective sample size of the weights, normalized, mean over prompts."""
    finetuned: Estimate
    difference: Estimate
    """Fine-tuned minus importance-weighted mean reward; both models start from the same noise, so much cancels."""
    reached: Estimate
    """Share of the shift from the base to the target that fine-tuning made."""
    z_by_prompt: tuple[float, ...]
    """Each prompt's difference in standard errors of its importance-sampling estimate."""
    aimed_by_prompt: tuple[float, ...]
    """Each prompt's shift from the base to the target."""
    made_by_prompt: tuple[float, ...]
    """Each prompt's shift from the base to the fine-tuned model."""

    @property
    def z(self) -> float:
        """Difference in standard errors of the importance-sampling estimate."""
        return self.difference.value / self.importance.standard_error


def compare(base: Tensor, finetuned: Tensor, multiplier: float) -> AgainstWeights:
    """Figures from rewards (P, n) of the base model and of the fine-tuned one, sample i of both from the same noise.

    The target is the self-normalized importance-sampling estimate sum_i w_i r_i of the tilted mean, with normalized
    w_i proportional to exp(lambda r_i). All errors are of the delta method, from each sample's influence.
    """
    logarithms = multiplier * base
    weights = self_normalized_weights(logarithms)  # mean 1 within a prompt
    target = (weights * base).mean(1, keepdim=True)
    of_base, of_finetuned = (values - values.mean(1, keepdim=True) for values in (base, finetuned))
    of_target = weights * (base - target)
    target, tuned, before = target[:, 0], finetuned.mean(1), base.mean(1)
    difference = _figure(tuned - target, of_finetuned - of_target)
    shift = float((target - before).mean())
    share = float((tuned - before).mean()) / shift
    influence = ((of_finetuned - of_base) - share * (of_target - of_base)) / shift
    return AgainstWeights(
        base=_figure(before, of_base),
        importance=_figure(target, of_target),
        ess=float(effective_sample_size(logarithms).mean() / base.shape[1]),
        finetuned=_figure(tuned, of_finetuned),
        difference=difference,
        reached=Estimate(share, _figure(before, influence).standard_error),
        z_by_prompt=tuple(((tuned - target) / _errors(of_target)).tolist()),
        aimed_by_prompt=tuple((target - before).tolist()),
        made_by_prompt=tuple((tuned - before).tolist()),
    )


def _errors(influences: Tensor) -> Tensor:
    """Standard error of each prompt's figure (P,), from influences (P, n) of its samples."""
    count = influences.shape[1]
    return (influences.square().sum(1) / (count - 1) / count).sqrt()


def _figure(values: Tensor, influences: Tensor) -> Estimate:
    errors = _errors(influences)
    return Estimate(float(values.mean()), float(errors.square().sum().sqrt()) / len(errors))


@torch.no_grad()
def rewards(problem: ControlProblem, prompts: Sequence[str], count: int) -> Tensor:
    """Rewards (P, count), float64, of the policy's samples as the recipe samples them, on the same noise every time."""
    keys = [("importance", p, i) for p in range(len(prompts)) for i in range(count)]
    shape = (len(problem.steps) + 1, *problem.family.latent_shape)
    scores = []
    for start in range(0, len(keys), BATCH):
        part = keys[start : start + BATCH]
        texts = [prompts[int(key[1])] for key in part]
        predict = problem.finetuned(problem.encode(texts), problem.recipe.guidance.guidance_scale)
        terminal = rollout(predict, problem.steps, normal(part, shape, problem.device, torch.float32)).terminal
        scores.append(problem.reward(problem.family.decode(terminal).clamp(0, 1), texts).total.double().cpu())
    return torch.cat(scores).view(len(prompts), count)


@dataclass(frozen=True)
class Weighted:
    """What is compared."""

    name: str
    """Recipe that it changes: `shapes` or `flow`."""
    reward: str
    multiplier: float
    word: str
    prompts: int
    inference_steps: int
    steps: int
    assignments: tuple[str, ...]

    def recipe(self, seed: int) -> Recipe:
        """The recipe, made to converge: hardly reused trajectories, no mask (it is a bias), a decaying rate."""
        prompts = json.dumps(prompts_with(self.word, self.prompts), ensure_ascii=False)
        return load_recipe(
            self.name,
            [
                f"reward=[{{name = {json.dumps(self.reward)}}}]",
                f"schedule.num_inference_steps={self.inference_steps}",
                f"method.reward_multiplier={self.multiplier}",
                "method.per_sample_threshold_quantile=-1.0",
                f"prompts.train={prompts}",
                f"prompts.evaluation={prompts}",
                "method.name=buffer-am",
                "method.buffer.size=128",
                "optimizer.prompts_per_step=32",
                "optimizer.micro_batch=32",
                "optimizer.betas=[0.9, 0.99]",
                "optimizer.schedule=cosine",
                "optimizer.weight_decay=0.0",
                "optimizer.warmup_steps=10",
                "evaluation.every=0",
                "tracking.mode=disabled",
                f"training.steps={self.steps}",
                f"training.checkpoint_every={min(self.steps, 40)}",
                f"training.seed={seed}",
                *_CONVERGES[self.name],
                *self.assignments,
            ],
        )


def prompts_with(word: str, count: int) -> list[str]:
    """Prompts of the embedded training set that contain a word, spread over the set."""
    every = [text for text in load_prompts("embedded:shapes", "train").texts if word in text.split() or not word]
    if not every:
        raise typer.BadParameter(f"no training prompt contains {word!r}")
    return [every[index * len(every) // count] for index in range(count)]


def rewards_of(file: Path, recipe: Recipe, checkpoint: Path | None, count: int) -> Tensor:
    """Rewards of the base model (no checkpoint: an unchanged policy) or of a fine-tuned one; kept in `file`."""
    described = {"recipe": recipe.model_dump(mode="json"), "samples": count}
    if file.is_file():
        if json.loads(file.read_text(encoding="utf-8"))["of"] != described:
            raise typer.BadParameter(f"{file} is of another setting; choose another folder")
        return _rewards(file)
    accelerator = build_accelerator(recipe)
    prompts = load_prompts(recipe.prompts.train, "train").texts
    problem = build_problem(recipe, accelerator, load_policy(recipe, accelerator.device, checkpoint), prompts)
    found = rewards(problem, prompts, count)
    write_json(file, {"of": described, "rewards": found.tolist()})
    return found


def main(
    out: Annotated[Path, typer.Argument(help="Folder for runs and figures.")],
    recipe: Annotated[str, typer.Option(help="Recipe of the model: shapes or flow.")] = "shapes",
    reward: Annotated[str, typer.Option(help="Name of the reward.")] = "shapes:area",
    multiplier: Annotated[float, typer.Option(help="Lambda.")] = 10.0,
    word: Annotated[str, typer.Option(help="Word that the prompts contain; empty: any prompt.")] = "big",
    prompts: Annotated[int, typer.Option(help="Prompts, trained and evaluated on.")] = 8,
    inference_steps: Annotated[int, typer.Option(help="Steps N of the sampler.")] = 10,
    samples: Annotated[int, typer.Option(help="Samples per prompt of each model.")] = 512,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 400,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    first_seed: Annotated[int, typer.Option(min=0, help="To share seeds among processes.")] = 0,
    assignments: Annotated[list[str] | None, typer.Option("--set", help="key=value of the recipe.")] = None,
) -> None:
    """Measure, train, measure again, compare; what was done is not repeated."""
    if recipe not in _CONVERGES:
        raise typer.BadParameter(f"--recipe {recipe}: choose one of {', '.join(_CONVERGES)}")
    setting = Weighted(recipe, reward, multiplier, word, prompts, inference_steps, steps, tuple(assignments or ()))
    base = rewards_of(out / "base.json", setting.recipe(0), None, samples)
    for seed in range(first_seed, first_seed + seeds):
        seeded, run = setting.recipe(seed), RunDirectory(out / f"seed-{seed}")
        if steps not in run.steps():
            train(seeded, run.path, resume=run.recipe.is_file())
        rewards_of(out / f"seed-{seed}.json", seeded, run.checkpoint(steps), samples)
        found = comparisons(out, base, multiplier)
        write_json(out / "importance.json", {name: asdict(one) for name, one in found.items()})
        table = _table(found)
        write_text(out / "importance.md", table)
        typer.echo(table)


def _rewards(file: Path) -> Tensor:
    return torch.tensor(json.loads(file.read_text(encoding="utf-8"))["rewards"], dtype=torch.float64)


def comparisons(out: Path, base: Tensor, multiplier: float) -> dict[str, AgainstWeights]:
    """Every seed measured in the folder so far, and the mean over them."""
    tuned = {file.stem.removeprefix("seed-"): _rewards(file) for file in sorted(out.glob("seed-*.json"))}
    every = {name: compare(base, values, multiplier) for name, values in tuned.items()}
    if len(tuned) == 1:
        return every
    return every | {"all": compare(base, torch.stack(list(tuned.values())).mean(0), multiplier)}


def _table(found: Mapping[str, AgainstWeights]) -> str:
    rows = [
        "| seed | base | importance sampling | ESS/n | fine-tuned | difference | in s.e. of importance sampling "
        "| largest by prompt | shift made |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rows += [
        f"| {name} | {_shown(c.base)} | {_shown(c.importance)} | {c.ess:.2f} | {_shown(c.finetuned)} "
        f"| {_shown(c.difference, '+')} | {c.z:+.2f} "
        f"| {max(c.z_by_prompt, key=abs):+.2f} | {c.reached.value:.1%} ± {c.reached.standard_error:.1%} |"
        for name, c in found.items()
    ]
    return "\n".join(rows) + "\n"


def _shown(figure: Estimate, sign: str = "") -> str:
    return measured(figure.value, figure.standard_error, sign)


if __name__ == "__main__":
    typer.run(main)
