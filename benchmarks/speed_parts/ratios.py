"""What amsd costs on top of what it cannot do without: a step against bare calls, evaluation against diffusers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import workbench
from torch import Tensor, nn

from amsd.diffusion.loading import load_family
from amsd.evaluation.evaluator import Evaluator
from amsd.prompts import load_prompts
from amsd.recipe import load_recipe
from amsd.rewards.table import resolve_reward
from speed_parts import measure


class Recorded:
    """Every call of the networks in one training step, to be made again without anything around it."""

    def __init__(self, networks: list[nn.Module]) -> None:
        self.calls: list[Callable[[], object]] = []
        self._hooks = [network.register_forward_hook(self._note, with_kwargs=True) for network in networks]

    def stop(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def replay(self) -> None:
        for call in self.calls:
            call()

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        result: Tensor = output[0] if isinstance(output, tuple) else output.sample
        args = tuple(value.detach().clone() if isinstance(value, Tensor) else value for value in args)
        trained = result.requires_grad and any(parameter.requires_grad for parameter in module.parameters())
        product = result.requires_grad and not trained
        self.calls.append(lambda: _call(module, args, kwargs, product, trained))


def _call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], product: bool, trained: bool) -> None:
    x = args[0].requires_grad_(product)
    with torch.set_grad_enabled(product or trained):
        output = module(x, *args[1:], **kwargs)
        result: Tensor = output[0] if isinstance(output, tuple) else output.sample
        if product:
            torch.autograd.grad(result, x, torch.ones_like(result))
        elif trained:
            result.sum().backward()


def step_against_bare_calls(rounds: int = 5) -> dict[str, Any]:
    """A training step of the recipe `shapes` against its own network calls, made again one after another."""
    recipe = load_recipe(
        "shapes", ["training.steps=1000", "training.checkpoint_every=1000", "evaluation.every=0"]
    )  # fmt: skip
    problem, accelerator = workbench.set_up(recipe, load_family(recipe.model).pipeline, torch.device("cpu"))
    with workbench.stepping(problem, accelerator) as step:
        step()
        recorded = Recorded(problem.policy.networks)
        step()
        recorded.stop()
        found = measure.interleaved({"step": step, "bare calls": recorded.replay}, rounds)
    return {"ratio": measure.ratio(found, "step", "bare calls"), "seconds": measure.medians(found)}


def evaluation_against_diffusers(rounds: int = 5, prompts: int = 8, samples: int = 4) -> dict[str, Any]:
    """An evaluation of the recipe `shapes` against the plain pipeline, called with the same batch, and the reward."""
    recipe = load_recipe(
        "shapes",
        [f"evaluation.prompts={prompts}", f"evaluation.samples_per_prompt={samples}", "evaluation.metrics=[]",
         "evaluation.diversity=[]", "evaluation.images=0"],
    )  # fmt: skip
    texts = load_prompts("embedded:shapes", "evaluation").texts[:prompts]
    pipeline = load_family(recipe.model).pipeline
    pipeline.set_progress_bar_config(disable=True)
    reward = resolve_reward("shapes:right")
    repeated = [text for text in texts for _ in range(samples)]
    size = recipe.evaluation.batch_size
    count = 0

    def plain() -> None:
        for start in range(0, len(repeated), size):
            part = repeated[start : start + size]
            generators = [torch.Generator().manual_seed(start + row) for row in range(len(part))]
            images = pipeline(
                part, num_inference_steps=recipe.schedule.num_inference_steps, guidance_scale=1.0, eta=1.0,
                generator=generators, output_type="pt", height=32, width=32,
            ).images  # fmt: skip
            reward(images, part)

    with tempfile.TemporaryDirectory() as folder:
        evaluator = Evaluator.for_recipe(recipe, texts, [reward], cache=Path(folder))

        def evaluate() -> None:
            nonlocal count
            count += 1  # weights of another name, so that no cached result is read
            evaluator.evaluate(pipeline, f"weights {count}")

        with torch.no_grad():
            found = measure.interleaved({"amsd": evaluate, "plain diffusers": plain}, rounds)
    return {
        "ratio": measure.ratio(found, "amsd", "plain diffusers"), "seconds": measure.medians(found),
        "images": len(repeated),
    }  # fmt: skip
