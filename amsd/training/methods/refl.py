"""ReFL (Xu et al., "ImageReward", arXiv 2304.05977): the reward of a predicted clean image at one random late step.

One prediction has gradients, whatever the length of the sampler. As in DRaFT nothing holds the policy at the base.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amsd.diffusion.guidance import NetworkPredictor
from amsd.diffusion.noise import generator
from amsd.recipe.methods.backpropagation import ReFL
from amsd.training.experience import Sample
from amsd.training.methods.backpropagation import BackpropagationTrainer, Partway


class ReFLTrainer(BackpropagationTrainer):
    """The reward of the clean latent that the network predicts part of the way."""

    noisy_steps = 0

    def first_steps(self, samples: Sequence[Sample]) -> Tensor:
        """A late step for each sample."""
        method = self.recipe.method
        assert isinstance(method, ReFL)
        late = method.late_steps(len(self.problem.steps))
        draws = [torch.randint(len(late), (), generator=generator(*sample.key, "index")) for sample in samples]
        return torch.stack(draws) + late.start

    def clean(self, used: Partway, predict: NetworkPredictor) -> Tensor:
        """The predicted x_data at the drawn step."""
        x = used.states.to(self.problem.device, torch.float32)
        return self.problem.steps.data(predict(x, used.indices), used.indices, x)
