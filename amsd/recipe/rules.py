"""Rules that join several keys of a recipe, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator

from amsd.errors import UsageError
from amsd.recipe.errors import Problem
from amsd.recipe.tree import Recipe
from amsd.urls import is_server, server_fault, shown_server


def violations(recipe: Recipe) -> list[Problem]:
    """Everything in `recipe` that is well typed but cannot work."""
    # A name that holds a password is said alone: the other rules would show it.
    return list(_servers(recipe)) or [problem for rule in _RULES for problem in rule(recipe)]


def warnings(recipe: Recipe) -> list[Problem]:
    """What will run but is probably not what the user wants; shown and tracked at the start of a run."""
    return [problem for advice in _ADVICE for problem in advice(recipe)]


def _single_file(recipe: Recipe) -> Iterator[Problem]:
    model = recipe.model
    if model.config is not None and not model.is_single_file:
        yield Problem("model.config", "belongs to a single-file checkpoint; a folder or hub id has its own",
                      model.config, "Remove it, or set model.pretrained to a .safetensors file.")  # fmt: skip
    if model.variant is not None and model.is_single_file:
        yield Problem("model.variant", "chooses among the files of a folder or hub id; a single file has none",
                      model.variant)  # fmt: skip


def _betas(recipe: Recipe) -> Iterator[Problem]:
    start, end = recipe.schedule.beta_start, recipe.schedule.beta_end
    if (start is None) != (end is None):
        missing = "beta_start" if start is None else "beta_end"
        yield Problem(f"schedule.{missing}", "beta_start and beta_end are set together or not at all")
    elif start is not None and end is not None and not start < end < 1:
        yield Problem("schedule.beta_end", f"must lie between beta_start = {start:g} and 1", end)


def _diversity(recipe: Recipe) -> Iterator[Problem]:
    if recipe.evaluation.diversity and recipe.evaluation.samples_per_prompt < 2:
        yield Problem(
            "evaluation.samples_per_prompt",
            "diversity is undefined for a single sample per prompt", recipe.evaluation.samples_per_prompt,
            "Use 2 or more, or remove evaluation.diversity.",
        )  # fmt: skip


def _distance(recipe: Recipe) -> Iterator[Problem]:
    count = recipe.evaluation.prompts
    if recipe.evaluation.distance and count is not None and count < 3:
        yield Problem("evaluation.prompts", "a distance to the base model takes its error from the spread over prompts",
                      count, "Use 3 or more, or remove evaluation.distance.")  # fmt: skip


def _budgets(recipe: Recipe) -> Iterator[Problem]:
    training, evaluation = recipe.training, recipe.evaluation
    if training.kl_budget is not None and recipe.schedule.eta == 0:
        yield Problem("training.kl_budget", "a sampler without noise (schedule.eta = 0) has no KL divergence",
                      training.kl_budget, "Use training.diversity_budget, or an eta above 0.")  # fmt: skip
    if training.diversity_budget is not None and not (evaluation.diversity and evaluation.every):
        missing = "evaluation.diversity names none" if evaluation.every else "evaluation.every is 0"
        yield Problem("training.diversity_budget", f"no diversity is measured: {missing}", training.diversity_budget,
                      'Set evaluation.diversity = ["pixels"] and evaluation.every = 1.')  # fmt: skip


def _reward_names(recipe: Recipe) -> Iterator[Problem]:
    seen: set[str] = set()
    for index, term in enumerate(recipe.reward):
        if term.name in seen:
            yield Problem(f"reward[{index}].name", "the same reward is listed twice; add up the weights", term.name)
        seen.add(term.name)
        if term.weight == 0:
            yield Problem(f"reward[{index}].weight", "a reward of weight 0 has no effect", 0.0,
                          "To watch it only, name it in evaluation.metrics.")  # fmt: skip


def _servers(recipe: Recipe) -> Iterator[Problem]:
    named = {f"reward[{index}].name": term.name for index, term in enumerate(recipe.reward)}
    named |= {f"evaluation.metrics[{index}]": name for index, name in enumerate(recipe.evaluation.metrics)}
    named |= {"evaluation.best": recipe.evaluation.best or "", "evaluation.options": ""}
    for name in recipe.evaluation.options:
        named["evaluation.options"] = name if is_server(name) and server_fault(name) else named["evaluation.options"]
    for key, name in named.items():
        if is_server(name) and (fault := server_fault(name)) is not None:
            yield Problem(key, fault, shown_server(name))


def _best(recipe: Recipe) -> Iterator[Problem]:
    known = {term.name for term in recipe.reward} | {*recipe.evaluation.metrics}
    if recipe.evaluation.best is not None and recipe.evaluation.best not in known:
        yield Problem("evaluation.best", f"is not evaluated; this recipe evaluates {', '.join(sorted(known))}",
                      recipe.evaluation.best)  # fmt: skip


def _options(recipe: Recipe) -> Iterator[Problem]:
    trained = {term.name for term in recipe.reward}
    evaluation = recipe.evaluation
    known = {*evaluation.metrics, *evaluation.diversity, *evaluation.distance} - trained
    for name in recipe.evaluation.options:
        if name in trained:
            yield Problem(f"evaluation.options.{name}", "a trained reward has its options under [[reward]]")
        elif name not in known:
            listed = f"named are {', '.join(sorted(known))}" if known else "none are named"
            yield Problem(
                f"evaluation.options.{name}", f"is not in evaluation.metrics, .diversity or .distance; {listed}"
            )


def _method(recipe: Recipe) -> Iterator[Problem]:
    yield from recipe.method.problems(recipe)


def _method_advice(recipe: Recipe) -> Iterator[Problem]:
    yield from recipe.method.advice(recipe)


def _ignored(recipe: Recipe) -> Iterator[Problem]:
    for key in recipe.method.ignored:
        yield Problem(key, f"is a key of another method and has no effect with method.name = {recipe.method.name!r}")


def _negative_prompt(recipe: Recipe) -> Iterator[Problem]:
    used = {recipe.guidance.guidance_scale, *(each.guidance_scale for each in recipe.evaluation_settings)}
    if recipe.guidance.negative_prompt and used == {1.0}:
        yield Problem("guidance.negative_prompt", "has no effect without guidance (guidance.guidance_scale = 1)",
                      recipe.guidance.negative_prompt)  # fmt: skip


def _warm_up(recipe: Recipe) -> Iterator[Problem]:
    warm_up, steps = recipe.optimizer.warmup_steps, recipe.training.steps
    if warm_up > steps:
        yield Problem(
            "optimizer.warmup_steps",
            f"is longer than the run of {steps} steps: the learning rate ends at {steps / warm_up:.2g} of its value",
            warm_up, "Lower it, or set 0.",
        )  # fmt: skip


def _fsdp(recipe: Recipe) -> Iterator[Problem]:
    if not recipe.training.fsdp:
        return
    if recipe.model.parameterization == "lora":
        yield Problem("training.fsdp", "divides trained networks, and a LoRA is too small to divide", True,
                      "Remove it: a LoRA of Stable Diffusion 3.5 medium needs one GPU of 24 GB.")  # fmt: skip
    if recipe.model.precision == "fp16":
        yield Problem("training.fsdp", "does not work with fp16: each process would choose its own loss scale", True,
                      'Set model.precision = "bf16".')  # fmt: skip
    if recipe.optimizer.name == "adamw-8bit":
        yield Problem("training.fsdp", "cannot divide the moments of an 8-bit optimizer", True,
                      'Set optimizer.name = "adamw".')  # fmt: skip


def _quantization(recipe: Recipe) -> Iterator[Problem]:
    model = recipe.model
    if model.quantization is not None and model.parameterization != "lora":
        yield Problem("model.quantization", "is for the frozen network under a LoRA; this recipe trains the network",
                      model.quantization, 'Set model.parameterization = "lora", or remove it.')  # fmt: skip


_RULES = (
    _single_file, _betas, _method, _diversity, _distance, _budgets, _reward_names, _best, _options, _fsdp,
    _quantization,
)  # fmt: skip
_ADVICE = (_method_advice, _ignored, _negative_prompt, _warm_up)


def require_even(recipe: Recipe, count: int) -> None:
    """Check that `count` processes get equal shares of a batch, so that they make equally many passes with gradients.

    Raises:
        UsageError: they do not.
    """
    per_step = recipe.optimizer.prompts_per_step
    if recipe.training.fsdp and per_step % count:
        raise UsageError(
            f"training.fsdp: {count} processes cannot share optimizer.prompts_per_step = {per_step} evenly. Use "
            f"{per_step - per_step % count or count} or {per_step + -per_step % count}, or another number of processes."
        )
