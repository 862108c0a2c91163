"""Flow-matching steps: the table of docs/method.md section 10, Euler at eta 0, adjoints through a transformer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from amsd.diffusion.agreement import require_agreement
from amsd.diffusion.blueprint import blueprint
from amsd.diffusion.families import family_for
from amsd.diffusion.families.flow_scheduler import SOCFlowMatchScheduler
from amsd.diffusion.guidance import Conditioning, NetworkPredictor
from amsd.diffusion.loading import load_family
from amsd.diffusion.parameterizations import build_policy
from amsd.diffusion.rollout import rollout
from amsd.diffusion.steps import flow_steps
from amsd.errors import UsageError
from amsd.evaluation.protocol import sampler_for
from amsd.experiment.diagnose import unit_variance_correlation
from amsd.matching import lean_adjoint
from amsd.recipe import EvaluationSetting, Model, Schedule, load_recipe
from amsd.training.methods import trainer_of
from amsd.training.methods.adjoint_matching import AMTrainer
from tests import pipelines

MEAN, VARIANCE = 0.5, 0.25
DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0}


def shifted(count: int) -> Tensor:
    """Noise levels 3u / (1 + 2u) for u = 1, ..., 1/N, 0; (N + 1,)."""
    u = torch.arange(count, -1, -1, dtype=torch.float64) / count
    return 3 * u / (1 + 2 * u)


def shift_error(count: int, eta: float) -> float:
    """Relative error of the terminal mean shift at the fixed point u_k = -sigma_k a_{k+1}, for a linear reward.

    Base data N(0.5, 0.25) with the exact velocity; the exact tilt of the discrete sampler shifts the terminal mean by
    its own variance.
    """
    levels = shifted(count)
    steps = flow_steps(levels, 1000 * levels[:-1], eta)
    slope = (steps.s - steps.alpha * VARIANCE) / (steps.alpha**2 * VARIANCE + steps.s**2)

    def velocity(x: Tensor, k: int, rows: Tensor | None = None) -> Tensor:
        return slope[k] * (x - steps.alpha[k] * MEAN) - MEAN

    states = torch.zeros(1, count + 1, 1, dtype=torch.float64)
    terminal, lowest = -torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.long)
    a = lean_adjoint(terminal, states, steps.A, steps.B, velocity, lowest).adjoints[0, :, 0]
    factor = steps.A + steps.B * slope
    variance, moved = 1.0, 0.0
    for k in range(count):
        variance = float(factor[k] ** 2 * variance + steps.sigma[k] ** 2)
        moved = float(factor[k] * moved - steps.sigma[k] ** 2 * a[k + 1])
    return 100 * (moved / variance - 1)


@pytest.mark.parametrize(
    ("count", "eta", "error"),
    [
        (5, 1.0, 0.0), (5, 0.5, -39.2), (5, 0.3, -73.3),
        (10, 1.0, 0.0), (10, 0.5, -22.4), (10, 0.3, -60.3),
        (50, 1.0, 0.0), (50, 0.5, -7.0), (50, 0.3, -39.6),
    ],
)  # fmt: skip
def test_table_of_the_flow_path(count: int, eta: float, error: float) -> None:
    assert shift_error(count, eta) == pytest.approx(error, abs=0.051 if eta < 1 else 1e-9)


def test_the_memoryless_sampler_forgets_everything_at_any_number_of_steps() -> None:
    for count in (2, 5, 50):
        levels = shifted(count)
        assert unit_variance_correlation(flow_steps(levels, levels[:-1], 1.0)) == pytest.approx(0, abs=1e-20)
    assert unit_variance_correlation(flow_steps(levels, levels[:-1], 0.3)) > 0.3


def test_above_one_the_noise_is_clamped_from_the_first_step_on() -> None:
    levels = shifted(6)
    for eta in (1.2, 3.0):
        steps = flow_steps(levels, levels[:-1], eta)
        assert 0 in steps.clamped
        assert torch.all(steps.sigma <= levels[1:] + 1e-15)
    assert not flow_steps(levels, levels[:-1], 1.0).clamped


def test_steps_are_those_of_the_posterior() -> None:
    """x_{k+1} given x_k and x_data at eta 1, by Bayes' rule on x_k = (alpha/alpha') x_{k+1} + noise."""
    levels = shifted(7)
    steps = flow_steps(levels, levels[:-1], 1.0)
    data, noise = 0.7, -1.3
    for k in range(1, 6):
        alpha, s, after = float(steps.alpha[k]), float(steps.s[k]), float(levels[k + 1])
        after_alpha = 1 - after
        x, ratio = alpha * data + s * noise, alpha / after_alpha
        forward = s**2 - ratio**2 * after**2
        variance = 1 / (1 / after**2 + ratio**2 / forward)
        mean = variance * (after_alpha * data / after**2 + ratio * x / forward)
        assert float(steps.sigma[k]) ** 2 == pytest.approx(variance)
        assert float(steps.A[k]) * x + float(steps.B[k]) * (noise - data) == pytest.approx(mean)


GRIDS: dict[str, dict[str, Any]] = {
    "shift 3": {"shift": 3.0}, "shift 1": {"shift": 1.0}, "dynamic": DYNAMIC,
    "linear": {**DYNAMIC, "time_shift_type": "linear"}, "terminal": {"shift": 3.0, "shift_terminal": 0.1},
    "karras": {"shift": 3.0, "use_karras_sigmas": True}, "beta": {"shift": 3.0, "use_beta_sigmas": True},
    "exponential": {**DYNAMIC, "use_exponential_sigmas": True},
}  # fmt: skip


@pytest.mark.parametrize("config", GRIDS.values(), ids=GRIDS)
def test_without_noise_the_steps_are_eulers(config: dict[str, Any]) -> None:
    own = FlowMatchEulerDiscreteScheduler(**config)
    ours = SOCFlowMatchScheduler.of(own)
    options = {"mu": 0.8} if "use_dynamic_shifting" in config else {}
    random = torch.Generator().manual_seed(0)
    a = b = c = torch.randn(2, 4, 3, 3, generator=random)
    for scheduler in (own, ours):
        scheduler.set_timesteps(7, **options)
    steps = ours.affine(0.0)
    for k, t in enumerate(own.timesteps):
        velocity = torch.randn(a.shape, generator=random)
        a = own.step(velocity, t, a, return_dict=False)[0]
        b = ours.step(velocity, t, b, return_dict=False)[0]
        c = steps.step(k, c, velocity, torch.randn(c.shape))
    assert torch.allclose(a, b, atol=1e-6)
    assert torch.allclose(a, c, atol=1e-6)


@pytest.mark.parametrize("scheduler", [{"shift": 3.0}, DYNAMIC], ids=["shift", "dynamic"])
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_the_rollout_is_what_the_pipeline_samples(eta: float, scheduler: dict[str, Any]) -> None:
    family = family_for(pipelines.stable_diffusion_3(t5=False, **scheduler), Model(size=(16, 24)))
    schedule = Schedule(num_inference_steps=4, eta=eta, shift_terminal=0.1 if eta == 0.7 else None)
    steps = family.steps(schedule)
    prompt, empty = family.encode(["a red circle"]), family.encode_empty(1)
    random = [torch.Generator().manual_seed(5)]
    start = torch.randn(1, *family.latent_shape, generator=random[0])
    noises = [torch.randn(start.shape, generator=torch.Generator().manual_seed(5)) for _ in range(1)]
    replay = torch.Generator().manual_seed(5)
    draws = [torch.randn(start.shape, generator=replay) for _ in range(5)]
    predict = NetworkPredictor(family.network(family.denoiser), steps, Conditioning(prompt, empty), 3.0)
    expected = rollout(predict, steps, torch.stack(draws, 1)).terminal
    assert torch.equal(noises[0], draws[0])
    family.pipeline.scheduler = family.training_sampler(schedule)
    found = family.draw(
        family.prompt_arguments(prompt, empty), random, eta=eta, guidance_scale=3.0, num_inference_steps=4,
        output_type="latent", latents=start,
    )  # fmt: skip
    assert torch.allclose(found, expected, atol=2e-5)


def test_the_grid_ends_where_the_recipe_says() -> None:
    """As diffusers' own scheduler does with the same option; the own grid ends in a step that no control can afford."""
    family = family_for(pipelines.stable_diffusion_3(t5=False))
    own = family.steps(Schedule(num_inference_steps=10))
    ended = Schedule(num_inference_steps=10, shift_terminal=0.2)
    steps = family.steps(ended)
    expected = FlowMatchEulerDiscreteScheduler(shift=3.0, shift_terminal=0.2)
    expected.set_timesteps(10)
    assert torch.allclose(steps.s.float(), expected.sigmas[:-1])
    assert float(steps.s[-1]) == pytest.approx(0.2)
    assert float(own.control_scale[8].abs()) == pytest.approx(30.85, abs=0.01)
    assert float(steps.control_scale[steps.controlled].abs().max()) == pytest.approx(1.56, abs=0.01)
    assert unit_variance_correlation(steps) == pytest.approx(0, abs=1e-12)
    assert family.exported_sampler(ended).config.shift_terminal == 0.2
    assert family.own_sampler(0.0)[0].config.shift_terminal is None
    with pytest.raises(UsageError, match=r"schedule.shift_terminal = 0.2 has no effect"):
        family_for(pipelines.stable_diffusion()).check_schedule(ended)


def test_a_grid_that_ends_somewhere_has_two_steps() -> None:
    """Asked for one, diffusers' own scheduler divides zero by zero; the model's own may end so, or the recipe's."""
    ended, free = Schedule(num_inference_steps=4, shift_terminal=0.2), Schedule(num_inference_steps=4)
    one = EvaluationSetting(eta=0.0, scheduler="fine-tuning", guidance_scale=1.0, num_inference_steps=1)
    family = family_for(pipelines.stable_diffusion_3(t5=False))
    assert sampler_for(one, family, free).setting.num_inference_steps == 1
    for scheduler in ("fine-tuning", "default"):
        own = family_for(pipelines.stable_diffusion_3(t5=False, shift=3.0, shift_terminal=0.1))
        with pytest.raises(UsageError, match=r"shift_terminal = 0\.1 has at least 2 steps"):
            sampler_for(one.model_copy(update={"scheduler": scheduler}), own, free)
    with pytest.raises(UsageError, match=r"shift_terminal = 0\.2 has at least 2 steps"):
        sampler_for(one, family, ended)
    family.pipeline.scheduler = family.exported_sampler(ended)
    with pytest.raises(UsageError, match=r"shift_terminal = 0\.2 has at least 2 steps"):
        family.check_drawing(0.0, 1.0, 1)


def test_a_step_that_dominates_the_loss_is_announced() -> None:
    family = family_for(pipelines.stable_diffusion_3(t5=False))
    for last, kinds in ((None, ["stiff-step"]), (0.2, [])):
        recipe = load_recipe("flow", [] if last else ["schedule.shift_terminal=1e-4"])
        schedule = Schedule(num_inference_steps=10, shift_terminal=last)
        assert [notice.kind for notice in AMTrainer.warnings(recipe, family.steps(schedule))] == kinds


@pytest.mark.parametrize(
    ("settings", "dominated"),
    [
        (["method.name=buffer-am"], "the loss"), (["method.step_weights=prediction"], "the KL divergence"),
        (["method.name=eam"], "the loss"), (["method.name=eam", "method.reward_at=endpoint"], "the KL divergence"),
        (["method.name=ddpo"], "the loss"), (["method.name=ram"], "the KL divergence"),
        (["method.name=draft"], "the KL divergence"), (["method.name=refl"], "the KL divergence"),
    ],
)  # fmt: skip
def test_every_method_says_what_the_grid_and_eta_do(settings: list[str], dominated: str) -> None:
    recipe = load_recipe("flow", [*settings, "schedule.eta=1.3"])
    steps = family_for(pipelines.stable_diffusion_3(t5=False)).steps(Schedule(num_inference_steps=10, eta=1.3))
    clamped, stiff = trainer_of(recipe.method).warnings(recipe, steps)
    assert (clamped.kind, stiff.kind) == ("clamped-noise", "stiff-step")
    assert f"This step dominates {dominated}." in stiff.text


@pytest.mark.parametrize(("eta", "kinds"), [(0.5, ["not-memoryless"]), (1.0, []), (1.3, ["clamped-noise"])])
def test_what_an_eta_does_is_announced(eta: float, kinds: list[str]) -> None:
    schedule = Schedule(num_inference_steps=10, eta=eta, shift_terminal=0.2)
    steps = family_for(pipelines.stable_diffusion_3(t5=False)).steps(schedule)
    notices = list(AMTrainer.warnings(load_recipe("flow", [f"schedule.eta={eta}"]), steps))
    assert [notice.kind for notice in notices] == kinds
    assert all(f"eta = {eta:g}" in notice.text for notice in notices if notice.kind == "clamped-noise")


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_adjoint_through_a_transformer(guidance: float) -> None:
    """Against central differences of a reward along the mean chain of a tiny MMDiT, guided and not."""
    family = family_for(pipelines.stable_diffusion_3(t5=False), Model(max_sequence_length=2))
    family.denoiser.double().requires_grad_(False)
    steps = family.steps(Schedule(num_inference_steps=4))
    given = Conditioning(family.encode(["a red circle"]), family.encode_empty(1)).map(lambda value: value.double())
    predict = NetworkPredictor(family.network(family.denoiser), steps, given, guidance)
    random = torch.Generator().manual_seed(0)
    states = torch.randn(1, 5, *family.latent_shape, generator=random, dtype=torch.float64)
    weights, direction = (torch.randn(states[:, 0].shape, generator=random, dtype=torch.float64) for _ in range(2))
    lowest = torch.zeros(1, dtype=torch.long)
    found = lean_adjoint(weights, states, steps.A, steps.B, lambda x, k, rows: predict(x, k), lowest).adjoints[:, 0]

    def reward(x: Tensor) -> Tensor:
        for k in range(4):
            deviation = states[:, k + 1] - steps.mean(k, states[:, k], predict(states[:, k], k)).detach()
            x = steps.mean(k, x, predict(x, k)) + deviation
        return (x * weights).sum()

    start = states[:, 0].clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(reward(start), start)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-8)
    h = 3e-3  # the transformer's normalizations compute in float32, whatever they are given
    with torch.no_grad():
        ends = [float(reward(states[:, 0] + sign * h * direction)) for sign in (1, -1)]
    assert float((found * direction).sum()) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=5e-3)


@pytest.mark.parametrize("t5", [True, False])
def test_stable_diffusion_3_is_loaded_as_its_files_mean(t5: bool, tmp_path: Path) -> None:
    pipelines.stable_diffusion_3(t5=t5).save_pretrained(tmp_path)
    family = load_family(Model(pretrained=str(tmp_path)))
    require_agreement(family)
    tokens = family.encode(["a cat"]).hidden_states.shape[1]
    assert tokens == 16 + 256
    short = load_family(Model(pretrained=str(tmp_path), max_sequence_length=3, size=(24, 16)))
    require_agreement(short)
    assert short.encode(["a cat"]).hidden_states.shape[1] == 16 + 3
    assert short.latent_shape == (16, 12, 8)
    assert load_family(Model(pretrained=str(tmp_path), t5=False)).pipeline.text_encoder_3 is None


def test_what_means_nothing_is_refused(tmp_path: Path) -> None:
    family = family_for(pipelines.stable_diffusion_3(t5=False))
    for change in (
        {"beta_start": 0.001, "beta_end": 0.01}, {"final_step": "midpoint"}, {"timestep_spacing": "leading"}
    ):  # fmt: skip
        with pytest.raises(UsageError, match=f"schedule.{next(iter(change))} = .* has no effect"):
            family.steps(Schedule.model_validate(change))
    with pytest.raises(UsageError, match="multiples of 4 pixels"):
        family_for(family.pipeline, Model(size=(18, 16)))
    with pytest.raises(UsageError, match="at most 48 pixels"):
        family_for(family.pipeline, Model(size=(16, 64)))
    for own, words in (
        (EulerDiscreteScheduler(), "EulerDiscreteScheduler"),
        (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "stochastic_sampling"),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas"),
    ):
        family.pipeline.scheduler = own
        for ask in (family.steps, family.exported_sampler, lambda _: family.own_sampler(0.0)):
            with pytest.raises(UsageError, match=words):
                ask(Schedule())
    pipelines.stable_diffusion().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"model\.t5 = false"):
        load_family(Model(pretrained=str(tmp_path), t5=False))


@pytest.mark.parametrize("parameterization", ["full", "lora", "offset"])
def test_an_unchanged_policy_is_its_base_and_checkpoints_are_read(parameterization: Any, tmp_path: Path) -> None:
    def policy() -> Any:
        return build_policy(
            family_for(pipelines.stable_diffusion_3(t5=False)), Model(parameterization=parameterization)
        )

    one, other = policy(), policy()
    given = one.family.encode(["a cat", "a dog"])
    x = torch.randn(2, *one.family.latent_shape, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([900.0, 100.0])
    assert torch.allclose(one.finetuned(x, times, given), one.base(x, times, given), atol=1e-6)
    for parameter in one.trainable.values():
        parameter.data.add_(0.01)
    one.save(tmp_path)
    other.load(tmp_path)
    assert torch.equal(other.finetuned(x, times, given), one.finetuned(x, times, given))
    assert not torch.allclose(one.finetuned(x, times, given), one.base(x, times, given), atol=1e-4)


def changed(folder: Path, file: str, **values: Any) -> None:
    tree = json.loads((folder / file).read_text(encoding="utf-8"))
    (folder / file).write_text(json.dumps(tree | values), encoding="utf-8")


ABSENT = [None, None]
UNFIT: dict[str, tuple[str, dict[str, Any], str]] = {
    "no shift": ("vae/config.json", {"shift_factor": None}, r"shift_factor = None.*Set shift_factor there"),
    "two outputs a channel": ("transformer/config.json", {"out_channels": 32}, "takes 16 channels and gives 32"),
    "no tokenizer of T5": ("model_index.json", {"tokenizer_3": ABSENT}, "it has no tokenizer_3"),
    "one CLIP": ("model_index.json", {"text_encoder_2": ABSENT, "tokenizer_2": ABSENT}, "it has no text_encoder_2"),
    "no transformer": ("model_index.json", {"transformer": ABSENT}, "it has no transformer"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_parts_that_cannot_draw_are_refused_alike_by_plans_and_by_the_load(name: str, tmp_path: Path) -> None:
    file, values, words = UNFIT[name]
    pipeline = pipelines.stable_diffusion_3()
    if file.startswith("transformer"):
        pipeline.transformer = type(pipeline.transformer).from_config(dict(pipeline.transformer.config) | values)
    pipeline.save_pretrained(tmp_path)
    changed(tmp_path, file, **values)
    for ask in (load_family, blueprint):
        with pytest.raises(UsageError, match=words):
            ask(Model(pretrained=str(tmp_path)))


def test_a_missing_t5_can_be_left_out_and_positions_can_be_computed(tmp_path: Path) -> None:
    pipeline = pipelines.stable_diffusion_3()
    config = dict(pipeline.transformer.config) | {"pos_embed_max_size": None}
    pipeline.transformer = type(pipeline.transformer).from_config(config)
    pipeline.save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / "text_encoder_3")
    with pytest.raises(UsageError, match=r"no folder text_encoder_3/.*model\.t5 = false"):
        load_family(Model(pretrained=str(tmp_path)))
    family = load_family(Model(pretrained=str(tmp_path), t5=False, size=(16, 64)))
    require_agreement(family)
    x = torch.randn(1, *family.latent_shape)
    assert family.network(family.denoiser)(x, torch.tensor([5.0]), family.encode(["a cat"])).shape == x.shape


FLUX = {"size": (16, 24), "max_sequence_length": 6}


@pytest.mark.parametrize("guided", [True, False], ids=["dev", "schnell"])
def test_flux_is_asked_what_its_pipeline_asks(guided: bool, tmp_path: Path) -> None:
    pipelines.flux(guided=guided).save_pretrained(tmp_path)
    model = Model(pretrained=str(tmp_path), embedded_guidance=2.0, **FLUX)
    if not guided:
        with pytest.raises(UsageError, match=r"embedded_guidance = 2 has no effect: .* \(guidance_embeds = false"):
            load_family(model)
        model = Model(pretrained=str(tmp_path), **FLUX)
    family = load_family(model)
    assert family.latent_shape == (8 // 2 * 12 // 2, 16)
    require_agreement(family)
    assert family.decode(torch.zeros(2, *family.latent_shape)).shape == (2, 3, 16, 24)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_rollout_of_flux_is_what_its_pipeline_samples(eta: float, guidance: float) -> None:
    """Guidance above 1 is a second branch on top of the embedded one."""
    family = family_for(pipelines.flux(), Model(embedded_guidance=2.0, **FLUX))
    schedule = Schedule(num_inference_steps=3, eta=eta)
    steps, prompt, empty = family.steps(schedule), family.encode(["a red circle"]), family.encode_empty(1)
    replay, random = (torch.Generator().manual_seed(5) for _ in range(2))
    draws = [torch.randn(1, *family.latent_shape, generator=replay) for _ in range(4)]
    predict = NetworkPredictor(family.network(family.denoiser), steps, Conditioning(prompt, empty), guidance)
    expected = rollout(predict, steps, torch.stack(draws, 1)).terminal
    family.pipeline.scheduler = family.training_sampler(schedule)
    found = family.draw(
        family.prompt_arguments(prompt, empty), [random], eta=eta, guidance_scale=guidance, num_inference_steps=3,
        output_type="latent", latents=torch.randn(1, *family.latent_shape, generator=random),
    )  # fmt: skip
    assert torch.allclose(found, expected, atol=2e-5)


def test_the_embedded_guidance_is_a_condition_of_the_network() -> None:
    outputs = []
    for value in (1.0, 4.0):
        family = family_for(pipelines.flux(), Model(embedded_guidance=value, **FLUX))
        x = torch.randn(1, *family.latent_shape, generator=torch.Generator().manual_seed(0))
        outputs.append(family.network(family.denoiser)(x, torch.tensor([500.0]), family.encode(["a cat"])))
    assert not torch.allclose(outputs[0], outputs[1])


@pytest.mark.parametrize("name", ["sd3", "sd3 without t5", "flux"])
def test_the_blueprint_is_what_is_loaded(name: str, tmp_path: Path) -> None:
    made = {
        "sd3": pipelines.stable_diffusion_3, "sd3 without t5": lambda: pipelines.stable_diffusion_3(t5=False),
        "flux": pipelines.flux,
    }[name]()  # fmt: skip
    made.save_pretrained(tmp_path)
    model = Model(pretrained=str(tmp_path), size=(16, 24))
    paper, family = blueprint(model), load_family(model)

    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    assert paper.parameters == count(family.denoiser)
    assert paper.vae_parameters == count(family.pipeline.vae)
    assert paper.text_parameters == sum(map(count, family.text_encoders))
    assert paper.family.latent_shape == family.latent_shape
    lora = build_policy(family, Model(parameterization="lora"))
    assert paper.lora_parameters(8, Model().lora.targets) == sum(value.numel() for value in lora.trainable.values())
    assert paper.forward_flops() > 1e5


TARGETS = {
    "one of several": (("to_q", "to_w"), r"'to_w' names no layer of this network. Did you mean '(\w+)'"),
    "a part of a name": (("o_q",), r"'o_q' names no layer"),
    "a normalization": (("norm_q",), r"'norm_q' names transformer_blocks.0.attn.norm_q, a RMSNorm"),
}


@pytest.mark.parametrize("case", TARGETS)
def test_targets_that_take_no_adapter_are_refused_before_and_at_the_start(case: str, tmp_path: Path) -> None:
    targets, words = TARGETS[case]
    pipelines.stable_diffusion_3(t5=False).save_pretrained(tmp_path)
    model = Model.model_validate(
        {"pretrained": str(tmp_path), "parameterization": "lora", "lora": {"targets": targets}}
    )
    with pytest.raises(UsageError, match=r"model\.lora\.targets: " + words):
        build_policy(load_family(model), model)
    with pytest.raises(UsageError, match=r"model\.lora\.targets: " + words):
        blueprint(model).lora_parameters(4, model.lora.targets)


def test_adapters_are_counted_as_peft_makes_them(tmp_path: Path) -> None:
    """Names end at dots (`proj` is not `x_proj`), and convolutions count too."""
    made = pipelines.stable_diffusion()
    made.save_pretrained(tmp_path)
    lora = {"rank": 3, "targets": ("conv1", "proj", "to_q", "net.2", "down_blocks.0.resnets.0.time_emb_proj")}
    model = Model.model_validate({"pretrained": str(tmp_path), "parameterization": "lora", "lora": lora})
    policy = build_policy(load_family(model), model)
    found = blueprint(model).lora_parameters(3, model.lora.targets)
    assert found == sum(value.numel() for value in policy.trainable.values())
