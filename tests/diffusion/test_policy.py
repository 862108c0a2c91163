"""Policies, guidance and families on tiny pipelines with random weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from amsd.diffusion.families import family_for
from amsd.diffusion.families.base import Family
from amsd.diffusion.families.ddim_scheduler import SOCDDIMScheduler
from amsd.diffusion.guidance import Conditioning, NetworkPredictor, TextCondition, guided
from amsd.diffusion.parameterizations import ADAPTER_FILE, build_policy
from amsd.diffusion.policy import Policy
from amsd.diffusion.rollout import rollout
from amsd.errors import UsageError
from amsd.matching import control
from amsd.recipe import Guidance, Model, Schedule
from amsd.training.problem import ControlProblem
from tests import pipelines

PARAMETERIZATIONS = ("full", "lora", "offset")
PROMPTS = ["a red circle", "two blue squares"]
MODES = {
    "guided trajectories": Guidance(guidance_scale=7.5),
    "no guidance": Guidance(guidance_scale=1.0),
    "full guidance": Guidance(
        guidance_scale=7.5, guidance_in_adjoint_computation=True, guidance_in_control_computation=True
    ),
}


def policy_of(parameterization: str, pipeline: Any = None, **model: Any) -> Policy:
    family = family_for(pipeline or pipelines.stable_diffusion())
    return build_policy(family, Model.model_validate({"parameterization": parameterization, **model}))


def conditioning(family: Family, prompts: list[str] = PROMPTS) -> Conditioning:
    return Conditioning(family.encode(prompts), family.encode_empty(len(prompts)))


def latents(count: int = len(PROMPTS), seed: int = 0) -> Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def disturb(policy: Policy) -> None:
    """Give every trained parameter another value, the zero ones included."""
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in policy.trainable.values():
            value.add_(0.1 * torch.randn(value.shape, generator=random))


@torch.no_grad()
def outputs(policy: Policy, base: bool = False) -> Tensor:
    network = policy.base if base else policy.finetuned
    return network(latents(), torch.tensor([999, 19]), conditioning(policy.family).prompt)


def steps_of(pipeline: Any, count: int = 4, eta: float = 1.0) -> Any:
    return SOCDDIMScheduler.for_recipe(pipeline.scheduler, Schedule(num_inference_steps=count)).affine(eta)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("mode", MODES)
def test_an_unchanged_policy_has_no_control(parameterization: str, mode: str, precision: str) -> None:
    pipeline = pipelines.stable_diffusion()
    with torch.no_grad():
        for value in pipeline.unet.parameters():  # no weight, of a normalization either, is a round number
            value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel())))
    policy = policy_of(parameterization, pipeline, precision=precision)
    steps = steps_of(policy.pipeline)
    scale = control_scale(MODES[mode])
    predictors = [
        NetworkPredictor(network, steps, conditioning(policy.family), scale)
        for network in (policy.finetuned, policy.base)
    ]
    with torch.no_grad():
        for k in steps.controlled.tolist():
            u = control(*(predict(latents(), k) for predict in predictors), steps.control_scale[k])
            assert torch.count_nonzero(u) == 0


def control_scale(guidance: Guidance) -> float:
    from amsd.recipe import from_dict

    recipe = from_dict({"guidance": guidance.model_dump(), "reward": [{"name": "brightness"}]})
    nothing: Any = None
    return ControlProblem(recipe, nothing, nothing, nothing, nothing, torch.device("cpu")).control_guidance


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_the_base_stays_what_it_was_bit_for_bit(parameterization: str) -> None:
    pristine = pipelines.stable_diffusion()
    policy = policy_of(parameterization)
    disturb(policy)
    given = conditioning(policy.family).prompt
    with torch.no_grad():
        expected = family_for(pristine).network(pristine.unet)(latents(), torch.tensor([999, 19]), given)
    assert torch.equal(outputs(policy, base=True), expected)
    assert not torch.allclose(outputs(policy), expected, atol=1e-3)
    with policy.sampling(base=True) as pipeline, torch.no_grad():
        found = policy.family.network(pipeline.unet)(latents(), torch.tensor([999, 19]), given)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_saving_and_loading_keeps_every_bit(parameterization: str, tmp_path: Path) -> None:
    policy = policy_of(parameterization, lora={"rank": 3, "alpha": 7.0})
    disturb(policy)
    policy.save(tmp_path)
    again = policy_of(parameterization, lora={"rank": 3, "alpha": 7.0})
    assert not torch.equal(outputs(again), outputs(policy))
    again.load(tmp_path)
    assert list(again.trainable) == list(policy.trainable)
    for name, value in policy.trainable.items():
        assert torch.equal(again.trainable[name], value), name
    assert torch.equal(outputs(again), outputs(policy))


@pytest.mark.parametrize("family", ["stable_diffusion", "stable_diffusion_xl"])
@pytest.mark.parametrize("alpha", [None, 7.0])
def test_diffusers_loads_the_adapter_with_its_scale(family: str, alpha: float | None, tmp_path: Path) -> None:
    build: Callable[[], Any] = getattr(pipelines, family)
    policy = policy_of("lora", build(), lora={"rank": 3, "alpha": alpha})
    disturb(policy)
    policy.save(tmp_path)
    plain = build()
    plain.load_lora_weights(tmp_path, weight_name=ADAPTER_FILE)
    given = conditioning(policy.family).prompt
    with torch.no_grad():
        found = policy.family.network(plain.unet)(latents(), torch.tensor([999, 19]), given)
    assert torch.allclose(found, outputs(policy), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(found, outputs(policy, base=True), atol=1e-3)


def test_equal_adapters_are_equal_files(tmp_path: Path) -> None:
    policy = policy_of("lora")
    found = set()
    for index in range(8):  # metadata keys in random order would differ in half of the files
        policy.save(tmp_path / str(index))
        found.add((tmp_path / str(index) / ADAPTER_FILE).read_bytes())
    assert len(found) == 1


def test_diffusers_loads_the_full_network(tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    policy = policy_of("full")
    disturb(policy)
    policy.save(tmp_path)
    plain = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    with torch.no_grad():
        given = conditioning(policy.family).prompt
        found = policy.family.network(plain)(latents(), torch.tensor([999, 19]), given)
    assert torch.equal(found, outputs(policy))


PIPELINES: dict[str, Callable[[], Any]] = {
    "sd": pipelines.stable_diffusion,
    "sd v-prediction": lambda: pipelines.stable_diffusion(prediction_type="v_prediction"),
    "sdxl": pipelines.stable_diffusion_xl,
}


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("family", PIPELINES)
@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_the_rollout_is_what_the_diffusers_pipeline_samples(family: str, scale: float, parameterization: str) -> None:
    policy = policy_of(parameterization, PIPELINES[family]())
    disturb(policy)
    steps = steps_of(policy.pipeline, eta=0.0)
    noise = torch.zeros(len(PROMPTS), 5, 4, 8, 8)
    noise[:, 0] = latents()
    predict = NetworkPredictor(policy.finetuned, steps, conditioning(policy.family), scale)
    expected = rollout(predict, steps, noise).terminal
    with policy.sampling() as pipeline:
        pipeline.scheduler = SOCDDIMScheduler.for_recipe(pipeline.scheduler, Schedule(num_inference_steps=4))
        found = pipeline(
            PROMPTS, latents=latents(), num_inference_steps=4, guidance_scale=scale, eta=0.0, output_type="latent"
        ).images
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_decoding_is_the_pipelines_own_without_the_clamp() -> None:
    pipeline = pipelines.stable_diffusion()
    x = 0.3 * latents()
    with torch.no_grad():
        found = family_for(pipeline).decode(x)
        raw = pipeline.vae.decode(x / pipeline.vae.config.scaling_factor).sample
        shown = pipeline.image_processor.postprocess(raw, output_type="pt")
    assert torch.allclose(found.clamp(0, 1), shown, atol=1e-6)


def test_scale_one_is_one_call_and_any_other_one_call_of_twice_the_rows() -> None:
    rows: list[int] = []

    def network(x: Tensor, timesteps: Tensor, condition: TextCondition) -> Tensor:
        assert len(x) == len(timesteps) == len(condition)
        rows.append(len(x))
        return x * condition.hidden_states.mean((1, 2)).reshape(-1, 1, 1, 1)

    x, t = latents(), torch.tensor([5, 5])
    prompt, empty = torch.full((2, 3, 4), 2.0), torch.full((2, 3, 4), 0.5)
    given = Conditioning(TextCondition(prompt), TextCondition(empty))
    assert torch.equal(guided(network, x, t, given, 1.0), 2 * x)
    assert torch.allclose(guided(network, x, t, given, 3.0), (0.5 + 3 * 1.5) * x)
    assert torch.allclose(guided(network, x, t, given, 0.0), 0.5 * x)
    assert rows == [2, 4, 4]


@pytest.mark.parametrize("family", PIPELINES)
@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_a_dropped_row_is_predicted_without_its_prompt(family: str, scale: float) -> None:
    family = family_for(PIPELINES[family]())
    network, given = family.network(family.pipeline.unet), conditioning(family)
    x, t = latents(), torch.tensor([500, 500])
    with torch.no_grad():
        kept = guided(network, x, t, given, scale)
        found = guided(network, x, t, given.dropped(torch.tensor([False, True])), scale)
        empty = network(x, t, given.negative)
    assert torch.allclose(found[0], kept[0], rtol=1e-4, atol=1e-5)
    assert torch.allclose(found[1], empty[1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(kept[1], empty[1], rtol=1e-4, atol=1e-5)


def test_velocity_becomes_noise_and_the_conversion_commutes_with_guidance() -> None:
    pipeline = pipelines.stable_diffusion(prediction_type="v_prediction")
    family, steps, x = family_for(pipeline), steps_of(pipeline), latents()
    given, network = conditioning(family), family.network(pipeline.unet)
    k = torch.tensor([0, 2])
    signal = steps.alpha_bar[k].float().reshape(-1, 1, 1, 1)
    with torch.no_grad():
        velocity = [network(x, steps.timesteps[k], part) for part in (given.negative, given.prompt)]
        noise = [signal.sqrt() * v + (1 - signal).sqrt() * x for v in velocity]
        found = NetworkPredictor(network, steps, given, 4.0)(x, k)
    assert torch.allclose(found, noise[0] + 4 * (noise[1] - noise[0]), rtol=1e-4, atol=1e-5)


def test_the_empty_prompt_is_what_the_family_uses() -> None:
    sd, xl = family_for(pipelines.stable_diffusion()), family_for(pipelines.stable_diffusion_xl())
    assert torch.equal(sd.encode_empty(3).hidden_states[2], sd.encode([""]).hidden_states[0])
    empty = xl.encode_empty(2)
    assert torch.count_nonzero(empty.hidden_states) == 0
    assert torch.count_nonzero(empty.added["text_embeds"]) == 0
    assert empty.added["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]] * 2


def test_an_unknown_family_is_an_error() -> None:
    class PixelPipeline:
        pass

    with pytest.raises(UsageError, match="PixelPipeline is not supported"):
        family_for(PixelPipeline())


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_gradient_checkpointing_spares_the_base(parameterization: str) -> None:
    """A product with the base's Jacobian calls each block once; the trained network's blocks run again."""
    from diffusers.models.resnet import ResnetBlock2D

    policy = policy_of(parameterization)
    blocks = sum(isinstance(module, ResnetBlock2D) for module in policy.trained_network.modules())
    disturb(policy)
    policy.checkpoint_gradients()
    calls = []
    for network in policy.networks:
        for module in network.modules():
            if isinstance(module, ResnetBlock2D):
                module.register_forward_pre_hook(lambda *_: calls.append(1))
    timesteps, condition = torch.tensor([999, 19]), conditioning(policy.family).prompt

    def called(predict: Callable[..., Tensor]) -> int:
        calls.clear()
        x = latents().requires_grad_(True)
        torch.autograd.grad(predict(x, timesteps, condition).sum(), x)
        return len(calls)

    with policy.only_base():
        assert called(policy.base) == blocks
    both = blocks if parameterization == "offset" else 0  # the base is part of the sum
    assert called(policy.finetuned) > 1.5 * blocks + both
