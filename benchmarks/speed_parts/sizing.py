"""What Stable Diffusion 1.5 costs on a GPU, computed from the cost model and from published rates; nothing is measured.

Sources: one forward pass of SD 1.5's UNet at 64x64 is 0.803 TFLOP, a product with its Jacobian 2.15 and a loss step 3.0
of them, and the decoder with its gradient 5.06 TFLOP (counted by torch's FLOP counter). Of a card's bf16 rate, 16% is
what diffusers reaches on an A100 (SDPA; 24% compiled and channels_last), 28% a large training of Stable Diffusion 2,
and 40% the goal of this project.
"""

from __future__ import annotations

from collections.abc import Iterator

from amsd.recipe import Recipe, load_recipe
from amsd.recipe.cost import cost_per_trajectory

FORWARD, PRODUCT, DECODER = 0.803, 2.15, 5.06
CARDS = {"RTX 4090": 165.0, "L40S": 362.0, "A100": 312.0, "H100": 989.0}
"""Dense bf16 rate, TFLOP/s, by the makers."""
SHARES = (0.16, 0.28, 0.40)
UPDATES, TRAJECTORIES = 200, 125


def recipes() -> dict[str, Recipe]:
    """The settings of the table."""
    same = ("optimizer.prompts_per_step=125", "evaluation.every=0")
    buffered = ("method.name=buffer-am", "method.buffer.size=125", "method.buffer.passes=10")
    short = ("schedule.num_inference_steps=10",)
    return {
        "N = 50, on-policy (the reference's setting)": load_recipe("sd15-am", same),
        "N = 50, buffer of 10 passes": load_recipe("sd15-am", [*same, *buffered]),
        "N = 10, on-policy": load_recipe("sd15-am", [*same, *short]),
        "N = 10, buffer of 10 passes": load_recipe("sd15-am", [*same, *short, *buffered]),
    }


def tflop_per_trajectory(recipe: Recipe) -> float:
    """Of one trained trajectory, with the decoder and its gradient once per collection."""
    cost = cost_per_trajectory(recipe)
    network = cost.total - cost["adjoint"] + cost["adjoint"] / 2 * PRODUCT
    return network * FORWARD + DECODER / getattr(recipe.method, "passes", 1)


def table() -> Iterator[str]:
    """Lines of a table: trajectories per second, and hours for 200 updates of 125, by card and share of its rate."""
    heads = [f"{card}, {share:.0%}" for card in CARDS for share in SHARES]
    yield "| setting | TFLOP per trajectory | " + " | ".join(heads) + " |"
    yield "|---" * (2 + len(heads)) + "|"
    for name, recipe in recipes().items():
        tflop = tflop_per_trajectory(recipe)
        cells = []
        for rate in CARDS.values():
            for share in SHARES:
                second = rate * share / tflop
                cells.append(f"{second:.2g}/s, {UPDATES * TRAJECTORIES / second / 3600:.2g} h")
        yield f"| {name} | {tflop:.0f} | " + " | ".join(cells) + " |"
