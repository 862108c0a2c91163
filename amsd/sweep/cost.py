"""What a training run costs, before it runs (method.md section 7)."""

from __future__ import annotations

from amsd.recipe import Recipe

#: Share of the steps that the first half of the loss steps is drawn from (method.md section 4).
_FIRST_STRATUM = 0.6


def unet_evaluations(recipe: Recipe) -> float:
    """UNet forward-equivalents of the training of `recipe`: sampling, adjoint and loss, without evaluation."""
    return per_trajectory(recipe) * recipe.optimizer.prompts_per_step * recipe.training.steps


def per_trajectory(recipe: Recipe) -> float:
    """Forward-equivalents per trajectory and loss pass.

    sampling N (2N guided); adjoint two per Jacobian product; loss 3 per step (4 if the base prediction of the
    adjoint cannot be used again), twice that with a guided control. A buffer shares the first two among its passes.
    """
    steps, loss_steps = recipe.schedule.num_inference_steps, recipe.method.timesteps_per_trajectory
    guidance = recipe.guidance
    guided = guidance.guidance_scale != 1
    in_adjoint, in_control = guidance.guidance_in_adjoint_computation, guidance.guidance_in_control_computation
    buffered = recipe.method.name == "buffer-am"
    smallest = 0.0 if buffered else expected_smallest_index(steps, loss_steps)
    products = steps - smallest - (recipe.method.adjoint_at == "next")
    sampling = steps * (2 if guided else 1)
    adjoint = 2 * products * (2 if in_adjoint else 1)
    loss = (3 if in_adjoint == in_control else 4) * loss_steps * (2 if in_control else 1)
    passes = recipe.method.buffer.passes if buffered else 1
    return (sampling + adjoint) / passes + loss


def expected_smallest_index(num_steps: int, count: int) -> float:
    """E[min] of `count` stratified indices: (n - k)/(k + 1) for k of n without replacement, in the first stratum."""
    first = round(_FIRST_STRATUM * num_steps)
    drawn = max(count // 2, count - (num_steps - first))
    if drawn:
        return (first - drawn) / (drawn + 1)
    return first + (num_steps - first - count) / (count + 1)
