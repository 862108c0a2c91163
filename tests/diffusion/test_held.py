"""Copies of the trained network that compute in its place."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from amsd.diffusion.held import MergedCopy
from tests.diffusion.test_policy import PARAMETERIZATIONS, conditioning, disturb, latents, outputs, policy_of


class Roundings(TorchDispatchMode):
    """Counts how often the trained weights are rounded, and keeps the types that convolutions compute in."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.convolved: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._foreach_copy_.default
        if func in (torch.ops.aten.convolution.default, torch.ops.aten.native_group_norm.default):
            self.convolved.add(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_half_precision_is_computed_throughout_and_weights_are_rounded_once(parameterization: str) -> None:
    policy = policy_of(parameterization, precision="bf16")
    disturb(policy)
    expected = outputs(policy)
    with Roundings() as counted:
        outputs(policy)
        outputs(policy)
    assert counted.count == 2
    assert counted.convolved == {torch.bfloat16}
    with policy.held(), Roundings() as counted:
        assert torch.equal(outputs(policy), expected)
    assert counted.count == 0


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_gradients_in_half_precision_are_those_of_single_precision_up_to_rounding(parameterization: str) -> None:
    gradients = []
    for precision in ("fp32", "bf16"):
        policy = policy_of(parameterization, precision=precision)
        torch.manual_seed(1)
        disturb(policy)
        for _ in range(2):  # two chunks add up
            output = policy.finetuned(latents(), torch.tensor([999, 19]), conditioning(policy.family).prompt)
            output.square().sum().backward()
        found = [value.grad for value in policy.trainable.values()]
        assert all(each is not None and each.dtype is torch.float32 for each in found)
        gradients.append(torch.cat([each.flatten() for each in found if each is not None]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.995
    assert gradients[1].norm() == pytest.approx(float(gradients[0].norm()), rel=0.02)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_a_block_holds_the_weights_as_they_are_when_it_begins(parameterization: str, precision: str) -> None:
    policy = policy_of(parameterization, precision=precision, lora={"rank": 4, "alpha": 2.0})
    for _ in range(2):
        disturb(policy)
        expected = outputs(policy)
        with policy.held(), policy.held():
            torch.testing.assert_close(outputs(policy), expected, rtol=1e-5, atol=1e-6)
    assert (outputs(policy) - outputs(policy, base=True)).abs().max() > 1e-3


def test_merged_layers_are_plain_and_everything_frozen_is_shared() -> None:
    policy = policy_of("lora")
    merged = MergedCopy(policy.trained_network)
    kinds = Counter(type(module).__module__.split(".")[0] for module in merged.network.modules())
    assert "peft" not in kinds
    frozen = {value.data_ptr() for value in policy.trained_network.parameters() if not value.requires_grad}
    own = [name for name, value in merged.network.named_parameters() if value.data_ptr() not in frozen]
    assert own
    assert all(".to_" in name and name.endswith(".weight") for name in own if "bias" not in name)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_gradients_come_from_the_trained_network(parameterization: str) -> None:
    policy = policy_of(parameterization, precision="bf16")
    disturb(policy)
    with policy.held():
        output = policy.finetuned(latents(), torch.tensor([999, 19]), conditioning(policy.family).prompt)
    output.square().sum().backward()
    assert all(value.grad is not None for value in policy.trainable.values())


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_a_pipeline_samples_through_the_copy(parameterization: str) -> None:
    policy = policy_of(parameterization, precision="bf16")
    disturb(policy)
    with policy.sampling() as pipeline:
        network = policy.family.denoiser
        drawn = pipeline(
            "a red circle", num_inference_steps=2, latents=latents(1), guidance_scale=1.0, output_type="latent"
        ).images
    assert network is not policy.trained_network
    assert torch.isfinite(drawn).all()


@pytest.mark.slow
def test_compiled_blocks_compute_the_same() -> None:
    plain, compiled = policy_of("lora"), policy_of("lora")
    for policy in (plain, compiled):
        disturb(policy)
        policy.checkpoint_gradients()
    compiled.compile()
    gradients = []
    for policy in (plain, compiled):
        for rows in (2, 1):  # a shrinking batch, as in the adjoint
            x, times = latents(rows), torch.tensor([999, 19][:rows])
            condition = conditioning(policy.family, ["a red circle", "two blue squares"][:rows]).prompt
            policy.finetuned(x, times, condition).square().sum().backward()
        gradients.append([value.grad for value in policy.trainable.values()])
    with compiled.held():
        torch.testing.assert_close(outputs(compiled), outputs(plain), rtol=1e-3, atol=1e-4)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
