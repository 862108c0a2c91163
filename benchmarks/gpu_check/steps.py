"""Training steps at Stable Diffusion 1.5's size: images per second, memory, share of what the card can do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import workbench

from amsd.recipe import Recipe
from gpu_check.record import Check


@dataclass(frozen=True)
class Case:
    """One setting of a training step. Trajectories per update, in the loss at once, and collected at once."""

    name: str
    needs: float
    """Seconds on a card."""
    parameterization: str = "full"
    precision: str = "bf16"
    inference_steps: int = 50
    loss_steps: int = 4
    batch: int = 16
    micro_batch: int | str = 4
    collection: int | str = 16
    checkpointing: bool = False
    compiled: bool = False
    passes: int = 0
    """Passes of a buffer of one batch; 0 trains on-policy."""
    guidance_scale: float = 7.5

    def cut(self, inference_steps: int = 6, batch: int = 2) -> Case:
        """The same code path in little time."""
        small = {"micro_batch": self.micro_batch, "collection": self.collection}
        sizes = {key: value if isinstance(value, str) else min(value, batch) for key, value in small.items()}
        return replace(
            self, inference_steps=min(self.inference_steps, inference_steps), batch=min(self.batch, batch), **sizes
        )  # type: ignore[arg-type]

    def recipe(self) -> Recipe:
        """As a recipe; it asks for more steps than are ever run here."""
        return workbench.recipe_of(
            {
                "model": {"parameterization": self.parameterization, "precision": self.precision},
                "schedule": {"num_inference_steps": self.inference_steps},
                "guidance": {"guidance_scale": self.guidance_scale},
                "method": {
                    "name": "buffer-am" if self.passes else "am",
                    "timesteps_per_trajectory": min(self.loss_steps, self.inference_steps - 2),
                    "buffer": {"size": self.batch, "passes": max(1, self.passes)},
                },
                "optimizer": {"prompts_per_step": self.batch, "micro_batch": self.micro_batch},
                "training": {
                    "steps": 100, "checkpoint_every": 100, "gradient_checkpointing": self.checkpointing,
                    "compile": self.compiled, "collection_batch": self.collection,
                },
            }
        )  # fmt: skip


CASES = (
    Case("full bf16, 16 at once", 25),
    Case("lora bf16, 16 at once", 25, parameterization="lora"),
    Case(
        "full fp32 (tf32), 5 at once, gradient checkpointing (the reference's precision)", 30, precision="fp32",
        batch=5, micro_batch=5, collection=5, checkpointing=True,
    ),
    Case(
        "full bf16, 5 at once, gradient checkpointing (recipe sd15-am)", 25, batch=10, micro_batch=5, collection=5,
        checkpointing=True,
    ),
    Case("buffer full bf16, 16 at once, 3 passes", 25, passes=3),
    Case("full bf16, 16 at once, one chunk, gradient checkpointing", 25, micro_batch=16, checkpointing=True),
    Case("full bf16, 32 at once", 30, batch=32, collection=32),
    Case("full bf16, 16 at once, N = 20", 12, inference_steps=20),
    Case("full bf16, 16 at once, N = 10", 10, inference_steps=10),
    Case("buffer lora bf16, N = 20, 3 passes", 15, parameterization="lora", passes=3, inference_steps=20),
    Case("lora bf16, unguided sampler", 20, parameterization="lora", guidance_scale=1.0),
    Case("lora bf16, 1 at once, gradient checkpointing, N = 10 (memory)", 12, parameterization="lora", batch=1,
         micro_batch=1, collection=1, checkpointing=True, inference_steps=10),
    Case("full bf16, 1 at once, gradient checkpointing, N = 10 (memory)", 12, batch=1, micro_batch=1, collection=1,
         checkpointing=True, inference_steps=10),
    Case("full bf16, collection_batch = auto, N = 10, 96 prompts", 25, inference_steps=10, batch=96, collection="auto"),
)  # fmt: skip
TINY = (0, 1, 4)
"""Cases that a tiny check runs."""

COMPILE_RESERVE = 130.0
"""Seconds that the training steps leave to torch.compile."""


def reserve_for_compile(check: Check) -> float:
    """Seconds to leave to torch.compile; none where it is not asked for."""
    wanted = not check.options.only or "compile" in check.options.only
    return COMPILE_RESERVE if wanted and check.cuda and not check.options.tiny else 0.0


def cases(check: Check) -> None:
    """Every case that the time allows."""
    chosen = [CASES[index].cut() for index in TINY] if check.options.tiny else CASES
    reserve = reserve_for_compile(check)
    for case in chosen:
        needs = (case.needs if check.cuda else 5) + reserve
        check.attempt("train", lambda: measure(check, case), needs=needs, case=case.name)  # noqa: B023


def measure(check: Check, case: Case) -> None:
    """A warm-up step on few inference steps (the same shapes), then one step, or one buffer's."""
    warm = replace(case, inference_steps=max(6, case.loss_steps + 2), passes=min(case.passes, 1))
    problem, accelerator = workbench.set_up(warm.recipe(), _pipeline(check), check.device)
    workbench.run_steps(problem, accelerator, workbench.StepTimer(1, check.sync))
    check.clean()
    recipe = case.recipe()
    problem = workbench.another_problem(recipe, accelerator, problem)
    found = workbench.run_steps(problem, accelerator, workbench.StepTimer(max(1, case.passes), check.sync))
    seconds = sum(found.seconds) / len(found.seconds)
    forwards = workbench.forwards_per_step(recipe)
    check.say("train", **_row(check, case, seconds, forwards, found))
    if case.passes > 1:
        _ten_passes(check, case, found.seconds)


def _pipeline(check: Check) -> Any:
    return workbench.random_pipeline(check.options.tiny, check.device)


def _row(
    check: Check, case: Case, seconds: float, forwards: float, found: workbench.StepTimer
) -> dict[str, Any]:  # fmt: skip
    rate, (_, best) = forwards / seconds, check.best()
    phases = [name for name in found.values[0] if name.startswith("seconds/")]
    mean = {name.split("/")[1]: sum(v[name] for v in found.values) / len(found.values) for name in phases}
    return {
        "case": case.name, "s_per_update": round(seconds, 3), "images_per_s": round(case.batch / seconds, 3),
        "forwards_per_s": round(rate, 1), "tflops": round(rate * check.tflop, 3),
        "share_of_best_bare": round(rate / best, 3) if best else None,
        "share_of_bf16_matmul": check.share_of_matrix_rate(rate), "peak_gib": check.peak(),
        "fitted": found.values[0].get("collection/batch"), "forwards_per_image": round(forwards / case.batch, 1),
        "phases": {name: round(value, 3) for name, value in mean.items()}, "loss": found.values[-1]["loss"],
    }  # fmt: skip


def _ten_passes(check: Check, case: Case, seconds: list[float]) -> None:
    """The price of the same buffer at ten passes, from the first step (which collects) and the others."""
    update = sum(seconds[1:]) / len(seconds[1:])
    collection = seconds[0] - update
    ten = update + collection / 10
    check.say(
        "train", case=f"{case.name} -> ten passes", s_per_update=round(ten, 3), images_per_s=round(case.batch / ten, 3),
        collection_s=round(collection, 3), loss_step_s=round(update, 3),
    )  # fmt: skip


def table(check: Check) -> None:
    """The training steps once more, for people."""
    columns = ("case", "s_per_update", "images_per_s", "forwards_per_s", "share_of_best_bare", "share_of_bf16_matmul")
    print("\n| case | s/update | images/s | forwards/s | share of best bare | of bf16 matmul | peak GiB |")
    print("|---|---|---|---|---|---|---|")
    for row in check.rows:
        if row["part"] == "train" and "phases" in row:
            print("| " + " | ".join(str(row[name]) for name in (*columns, "peak_gib")) + " |")


def reference_from_bare_calls(check: Check) -> None:
    """What the reference's procedure costs at 5 trajectories by its network calls alone, in fp32/TF32.

    Hooks count 212.0 forward-equivalents: 2 N for guided sampling, 2 N for the adjoint through all steps, 3 K for the
    loss.
    """
    forward, product = check.bare.get(("fp32 (tf32)", 10)), check.bare.get(("fp32 (tf32) vjp", 5))
    if forward is None or product is None:
        return
    steps = 50
    seconds = 5 * (2 * steps / forward + (2 * steps + 3 * 4) / product)
    print(
        "reference procedure from its network calls alone (fp32/tf32, 5 at once, no stop, no reuse): "
        f"{5 / seconds:.3f} images/s"
    )
