"""The tables of docs/sizing.md, from the plan that `amsd train --dry-run` prints. Nothing is measured here.

python benchmarks/sizing.py           # prints the tables
python benchmarks/sizing.py --write   # writes them into the page
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from speed_parts.page import replaced

from amsd.experiment.plan import ASSUMED_TFLOPS, make_plan
from amsd.recipe import load_recipe

PAGE = Path(__file__).parents[1] / "docs" / "sizing.md"
NETWORKS = (("LoRA", "sd15-lora"), ("full", "sd15-am"))
RECIPES = ("sd15-lora", "sd15-am", "sd15-buffer-am")


def memory() -> Iterator[str]:
    """Weights, gradients and optimizer of Stable Diffusion 1.5, by parameterization and precision."""
    yield "| parameterization | precision | weights, gradients, optimizer |"
    yield "|---|---|---|"
    for name, recipe in NETWORKS:
        for precision in ("bf16", "fp32"):
            plan = make_plan(load_recipe(recipe, [f"model.precision={precision}"]), processes=1)
            rank = f", rank {plan.recipe.model.lora.rank}" if name == "LoRA" else ""
            yield f"| {name}{rank} | {precision} | {plan.memory_bytes / 2**30:.1f} GiB |"


def time() -> Iterator[str]:
    """Network calls of an optimizer step, and its time at an assumed rate."""
    yield f"| recipe | forward-equivalents per step | one step at {ASSUMED_TFLOPS:g} TFLOP/s |"
    yield "|---|---|---|"
    for name in RECIPES:
        plan = make_plan(load_recipe(name), processes=1)
        seconds = plan.forwards_per_step * plan.flops_per_forward / (ASSUMED_TFLOPS * 1e12)
        yield f"| `{name}` | {plan.forwards_per_step:,.0f} | {seconds:.0f} s |"


def page(text: str) -> str:
    """The page with both tables made anew."""
    return replaced(replaced(text, "memory", "\n".join(memory())), "time", "\n".join(time()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the tables into docs/sizing.md")
    if parser.parse_args(arguments).write:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print("\n".join([*memory(), "", *time()]))


if __name__ == "__main__":
    main()
