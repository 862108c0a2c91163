"""`SOCFlowMatchScheduler`: diffusers' flow-matching Euler scheduler on the affine steps that training uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from amsd.diffusion.steps import AffineSteps, flow_steps
from amsd.errors import UsageError

# diffusers looks for the base class in the module that a saved pipeline names.
__all__ = ["SOCFlowMatchScheduler", "SchedulerMixin"]

_NOT_AFFINE = ("invert_sigmas", "stochastic_sampling")


def require_euler(scheduler: Any) -> None:
    """Check that a model's own scheduler takes Euler's steps.

    Others are refused for drawing too: pipelines call some of them with arguments that they do not have, and give those
    with noise no generator, so that no seed would bring a picture back.

    Raises:
        UsageError: it is another scheduler, or its step is not affine.
    """
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        raise UsageError(
            f"The model's scheduler is a {type(scheduler).__name__}; the steps of a flow model are those of "
            "FlowMatchEulerDiscreteScheduler. Put that one into the model's folder."
        )
    for key in _NOT_AFFINE:
        if scheduler.config.get(key, False):
            raise UsageError(
                f"The model's scheduler has {key} = true, with which the control is undefined. "
                f"Set {key} to false in the model's scheduler_config.json."
            )


class SOCFlowMatchScheduler(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
    """Euler's method with noise: eta = 0 is `FlowMatchEulerDiscreteScheduler`, eta = 1 is memoryless.

    Pipelines of flow models pass neither eta nor a generator to `step`, so `with_noise` tells them beforehand.
    """

    eta: float = 0.0
    generators: list[torch.Generator] | None = None

    @classmethod
    def of(cls, scheduler: Any) -> Self:
        """The scheduler with the grid of a model's own one.

        Raises:
            UsageError: it is no flow-matching Euler scheduler, or its step is not affine.
        """
        require_euler(scheduler)
        made: Self = cls.from_config(scheduler.config)
        return made

    def with_noise(self, eta: float, generators: Sequence[torch.Generator] | None = None) -> Self:
        """Sample with this eta from now on; `generators` give the noise of each row."""
        self.eta, self.generators = eta, None if generators is None else list(generators)
        return self

    def affine(self, eta: float) -> AffineSteps:
        """Coefficients of all steps of the current grid."""
        return flow_steps(self.sigmas, self.timesteps, eta)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple[Tensor]:
        """One step, in float32, as diffusers' own; `timestep` must be on the grid.

        Raises:
            ValueError: it is not.
        """
        if self.step_index is None:
            if not bool((self.timesteps == torch.as_tensor(timestep).to(self.timesteps.device)).any()):
                raise ValueError(
                    f"timestep {float(timestep):g} is not on the grid of {len(self.timesteps)} steps: "
                    "use scheduler.timesteps"
                )
            self._init_step_index(timestep)
        k, steps = self.step_index, self.affine(self.eta)
        x = steps.mean(k, sample.float(), model_output.float())
        if steps.sigma[k] > 0:
            source = self.generators if generator is None else generator
            noise = randn_tensor(x.shape, generator=source, device=x.device, dtype=x.dtype)
            x = x + float(steps.sigma[k]) * noise
        self._step_index += 1
        x = x.to(model_output.dtype)
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=x) if return_dict else (x,)
