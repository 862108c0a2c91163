"""Parity with microsoft/soc-fine-tuning-sd: every stored tensor, through the functions that training runs.

The recipe's `final_step = "midpoint"` and `adjoint_at = "current"` are the reference's conventions. What is left out,
and why: steps where eta = 2 makes the reference take the root of a negative number with its sign flipped (amsd clamps
sigma there), and the importance weights of its default mode, which compare a guided buffer with unguided predictions
(amsd guides both as the sampler was). The reference's moving threshold has another warm-up, so the test computes that
one and gives it to the mask.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amsd.diffusion.families.stable_diffusion import StableDiffusion
from amsd.diffusion.guidance import Conditioning, NetworkPredictor, TextCondition
from amsd.diffusion.parameterizations import SummedNetworks
from amsd.diffusion.rollout import rollout
from amsd.matching import QuantileThreshold, control, effective_sample_size, lean_adjoint, smooth
from amsd.recipe import Model, from_dict
from amsd.training.methods.adjoint_matching import AMTrainer
from amsd.training.methods.lean_adjoint import AdjointExperience
from amsd.training.problem import ControlProblem
from tests.golden.reference import BETAS, TOLERANCE, Golden, scheduler, unet

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
CHOSEN = {10: [0, 1, 5, 9], 50: [0, 1, 25, 49]}
STEPS = scheduler().affine(1.0)
CPU = torch.device("cpu")

FAMILY = StableDiffusion(SimpleNamespace(vae_scale_factor=8), Model(size=(64, 64)))
"""The way of calling the network; of its pipeline nothing is asked."""


def conditioning(prompt: Tensor, empty: Tensor) -> Conditioning:
    return Conditioning(TextCondition(prompt), TextCondition(empty.expand_as(prompt)))


def trainer(finetuned: nn.Module, base: nn.Module, scale: float, adjoint: bool = False, control: bool = False) -> Any:
    """An `AMTrainer` without a run: only its problem, which is all that `match` and `log_weights` use."""
    recipe = from_dict(
        {
            "guidance": {
                "guidance_scale": scale,
                "guidance_in_adjoint_computation": adjoint,
                "guidance_in_control_computation": control,
            },
            "reward": [{"name": "brightness"}],
        }
    )
    family = FAMILY
    networks: Any = SimpleNamespace(finetuned=family.network(finetuned), base=family.network(base))
    missing: Any = None
    result = AMTrainer.__new__(AMTrainer)
    result.problem = ControlProblem(recipe, family, networks, STEPS, missing, CPU)
    result.recipe = recipe
    return result


def experience(indices: Tensor, given: Conditioning, dropped: bool = False, **latents: Tensor) -> AdjointExperience:
    """Steps `indices` (K,) of every trajectory, all used in one pass; latents that are not given are zero."""
    rows, zeros = len(given), torch.zeros_like(latents["states"])
    names = ("states", "adjoints", "base_predictions", "noises", "sampler_predictions")
    nothing: Any = None
    not_used = ("rewards", "terms", "reward_gradient_norm", "clamped_share", "adjoint_norm", "initial_cosine")
    return AdjointExperience(
        prompts=("",) * rows,
        indices=indices.expand(rows, -1),
        columns=torch.arange(len(indices)).expand(rows, 1, -1),
        conditioning=given,
        dropped=torch.full((rows,), dropped),
        **dict.fromkeys(not_used, nothing),
        **{name: latents.get(name, zeros) for name in names},
    )


def test_scheduler() -> None:
    golden = Golden("g1_scheduler")
    for precision, dtype in (("f64", torch.float64), ("f32", torch.float32)):
        for betas in BETAS:
            golden.agrees(f"f32/{betas}/alphas_cumprod", scheduler(betas).alphas_cumprod, 0)
            for count in CHOSEN:
                compare_schedule(golden, f"{precision}/{betas}/N{count}", dtype, betas, count)
    assert not golden.missed()


def compare_schedule(golden: Golden, key: str, dtype: torch.dtype, betas: str, count: int) -> None:
    tolerance = TOLERANCE[dtype]
    ours = scheduler(betas, count)
    golden.agrees(f"{key}/timesteps", ours.timesteps, 0)
    for row, eta in enumerate(golden["in/eta"].tolist()):
        steps = ours.affine(eta)
        final = steps.A[-1] ** 2 * steps.alpha_bar[-1]
        golden.agrees(f"{key}/final_alpha_cumprod", final, tolerance)
        # Only eta = 2 exceeds the schedule, and only there does the reference flip a sign.
        assert bool(steps.clamped) == (eta == 2)
        sound = torch.tensor([k for k in range(count) if k not in steps.clamped], dtype=torch.long)
        golden.agrees(f"{key}/std_dev_t", steps.sigma[sound], tolerance, (torch.tensor(row), sound))
        for prediction in ("epsilon", "v_prediction"):
            for column, k in enumerate(CHOSEN[count]):
                if k not in steps.clamped:
                    part = (row, column)
                    compare_step(golden, f"{key}/{prediction}", dtype, scheduler(betas, count, prediction), k, part)


def compare_step(golden: Golden, key: str, dtype: torch.dtype, ours: Any, k: int, part: tuple[int, int]) -> None:
    tolerance, eta = TOLERANCE[dtype], float(golden["in/eta"][part[0]])
    x, noise, output, output_base = (
        golden[f"in/{name}"].to(dtype) for name in ("sample", "variance_noise", "model_output", "model_output_init")
    )
    t = ours.timesteps[k]
    step, base = (ours.step(value, t, x, eta=eta, variance_noise=noise) for value in (output, output_base))
    golden.agrees(f"{key}/prev_sample", step.prev_sample, tolerance, part)
    golden.agrees(f"{key}/prev_sample_init", base.prev_sample, tolerance, part)
    golden.agrees(f"{key}/pred_original_sample", step.pred_original_sample, tolerance, part[1])
    steps = ours.affine(eta)
    means = [steps.mean(k, x, steps.prediction(value, k, x)) for value in (output, output_base)]
    golden.agrees(f"{key}/prev_sample_diff", means[0] - means[1], tolerance, part)


@DTYPES
def test_trajectory(dtype: torch.dtype) -> None:
    golden = Golden("g2_trajectory")
    network = FAMILY.network(unet(["unet_finetuned"], dtype))
    given = conditioning(golden["in/prompt_embeds"].to(dtype), golden["in/negative_prompt_embeds"].to(dtype))
    golden.agrees("timesteps", STEPS.timesteps, 0)
    for scale in (1.0, 7.5):
        noises = golden[f"cfg{scale}/random_noises"]
        noise = torch.cat([golden["in/latents"][:, None], noises], 1).to(dtype)
        found = rollout(NetworkPredictor(network, STEPS, given, scale), STEPS, noise)
        golden.agrees(f"cfg{scale}/random_noises", found.noises, TOLERANCE[dtype])
        golden.agrees(f"cfg{scale}/x_t", found.states, TOLERANCE[dtype])
        golden.agrees(f"cfg{scale}/noise_preds", found.predictions, TOLERANCE[dtype])
    assert not golden.missed()


@DTYPES
def test_adjoint(dtype: torch.dtype) -> None:
    golden, trajectory = Golden("g3_adjoint"), Golden("g2_trajectory")
    base = FAMILY.network(unet(["unet_base"], dtype).requires_grad_(False))
    states = trajectory["cfg7.5/x_t"].to(dtype)
    given = conditioning(trajectory["in/prompt_embeds"].to(dtype), trajectory["in/negative_prompt_embeds"].to(dtype))
    offset = states[:, -1] - golden["in/c"].to(dtype)  # minus the gradient of r(x) = -|x - c|^2 / 2
    golden.agrees("reward_values", -0.5 * offset.square().flatten(1).sum(1), TOLERANCE[dtype])
    for guided, scale in ((0, 1.0), (1, 7.5)):
        predict = NetworkPredictor(base, STEPS, given, scale)
        for multiplier in (1, 100):
            found = adjoints(predict, states, multiplier * offset, 0)
            golden.agrees(f"cfgadj{guided}/mult{multiplier}/adjoint_states", found.adjoints, TOLERANCE[dtype])
            golden.agrees(f"cfgadj{guided}/noise_preds_init", found.base_predictions, TOLERANCE[dtype])
    assert not golden.missed()


def adjoints(predict: NetworkPredictor, states: Tensor, terminal: Tensor, lowest: int) -> Any:
    stop = torch.full((len(states),), lowest)
    return lean_adjoint(terminal, states, STEPS.A, STEPS.B, lambda x, k, rows: predict.rows(rows)(x, k), stop)


@DTYPES
def test_buffer(dtype: torch.dtype) -> None:
    golden, tolerance = Golden("g5_buffer"), TOLERANCE[dtype]
    base, finetuned = unet(["unet_base"], dtype), unet(["unet_finetuned"], dtype)
    given = conditioning(golden["in/prompt_embeds"].to(dtype), golden["in/negative_prompt_embeds"].to(dtype))
    everything = torch.arange(len(STEPS))
    for scale, guided in ((1.0, False), (7.5, True)):
        mode = f"cfg{scale}_ctrl{int(guided)}"
        states, noises = golden[f"in/cfg{scale}/x_t"].to(dtype), golden[f"in/cfg{scale}/random_noises"].to(dtype)
        sampler = trainer(base, base, scale).problem.finetuned(given, scale)
        sampled = rollout(sampler, STEPS, torch.cat([states[:, :1], noises], 1))
        golden.agrees(f"in/cfg{scale}/x_t", sampled.states, tolerance)
        golden.agrees(f"in/cfg{scale}/noise_preds_buffer", sampled.predictions, tolerance)
        stored = experience(
            everything, given, states=sampled.states[:, :-1], noises=noises, sampler_predictions=sampled.predictions
        )
        items = stored.items(torch.arange(2), 0)
        for name, current in (("same", base), ("ft", finetuned)):
            subject, key = trainer(current, base, scale, control=guided), f"{mode}/{name}"
            with torch.no_grad():
                weights = subject.match(items, weigh=True).log_weights
                # Zero for the unchanged policy, so its rounding is measured on the scale of the changed one's.
                scale_of_zero = float(golden[f"{mode}/ft/stepwise_log_weights"].abs().max())
                allowed = tolerance * scale_of_zero if name == "same" else tolerance
                golden.agrees(f"{key}/stepwise_log_weights", weights.view(2, -1), allowed)
                golden.agrees(f"{key}/ess_stepwise", effective_sample_size(weights), tolerance)
                if name == "ft":
                    difference = buffer_difference(subject, items, scale)
                    golden.agrees(f"{key}/control_difference", difference.view_as(noises), tolerance)
    # The reference's default mixes a guided buffer with unguided predictions.
    assert {key.split("/")[0] for key in golden.missed()} == {"cfg7.5_ctrl0"}


def buffer_difference(subject: Any, items: Any, scale: float) -> Tensor:
    x = items.latent("states", CPU)
    predict = subject.problem.finetuned(items.conditioning(CPU), scale)
    table = STEPS.control_scale[items.indices].to(x).reshape(-1, 1, 1, 1)
    return control(predict(x, items.indices), items.latent("sampler_predictions", CPU), table)


def test_smoothing() -> None:
    golden, tolerance = Golden("g7_smoothing"), TOLERANCE[torch.float64]
    x, u, w = (golden[f"in/{name}"] for name in ("x", "u", "w"))

    def gradient(at: Tensor) -> tuple[Tensor, Tensor]:
        at = at.clone().requires_grad_(True)
        rewards = 3 * torch.sin(2 * (u * at).flatten(1).sum(1)) + 0.05 * (w * torch.sin(5 * at)).flatten(1).sum(1)
        return rewards.detach(), torch.autograd.grad(rewards.sum(), at)[0]

    draws = [gradient(x + 0.02 * noise) for noise in golden["in/unit_noises"]]
    rewards, gradients = (torch.stack(parts) for parts in zip(*draws, strict=True))
    found = smooth(gradients, 0.85)
    golden.agrees("all_rewards", rewards, tolerance)
    golden.agrees("avg_rewards", rewards.mean(0), tolerance)
    golden.agrees("grad_norms", found.norms, tolerance)
    golden.agrees("scaling", found.scaling, tolerance)
    # The limit is what a clipped draw's norm was scaled to.
    golden.agrees("quantile_vals", (found.scaling * found.norms).max(0).values, tolerance)
    golden.agrees("avg_grads", found.gradient, tolerance)
    plain_rewards, plain_gradients = gradient(x)
    golden.agrees("plain_rewards", plain_rewards, tolerance)
    golden.agrees("plain_grads", smooth(plain_gradients[None], None).gradient, tolerance)
    assert not golden.missed()


#: Name -> guided control, offset network, batches, quantile; and the exceptions of the last four.
VARIANTS: dict[str, dict[str, Any]] = {
    "ctrl0_off0": {},
    "ctrl1_off0": {"control": True},
    "ctrl0_off1": {"offset": True},
    "ctrl1_off1": {"control": True, "offset": True},
    "adj1_ctrl1_off0": {"control": True, "adjoint": True, "batches": 1},
    "dropout1_off0": {"dropped": True, "batches": 1},
    "quantile_off": {"batches": 1, "quantile": -1.0},
    "quantile1": {"batches": 1, "quantile": 1.0},
}


@DTYPES
def test_loss(dtype: torch.dtype) -> None:
    golden = Golden("g4_loss")
    golden.agrees("in/reward_multiplier", 0.02, 0)
    for name, settings in VARIANTS.items():
        compare_loss(golden, name, dtype, **settings)
    assert not golden.missed()


def compare_loss(
    golden: Golden,
    name: str,
    dtype: torch.dtype,
    control: bool = False,
    offset: bool = False,
    adjoint: bool = False,
    dropped: bool = False,
    batches: int = 5,
    quantile: float = 0.9,
) -> None:
    base = unet(["unet_base"], dtype).requires_grad_(False)
    trained = unet(["unet_finetuned", *["unet_offset_conv_out"] * offset], dtype)
    subject = trainer(SummedNetworks(base, trained) if offset else trained, base, 7.5, adjoint, control)
    threshold: float | None = None
    for batch in range(batches):
        items = loss_items(golden, subject, batch, name, dtype, dropped)
        trained.zero_grad()
        matched = subject.match(items, weigh=False)
        roots = matched.loss.detach().sqrt()
        mask = torch.ones_like(roots)
        if quantile >= 0:
            value = QuantileThreshold().updated(roots, quantile).value
            golden.agrees(f"{name}/quantile_threshold", value, TOLERANCE[dtype], batch)
            threshold = reference_threshold(threshold, value, batch)
            golden.agrees(f"{name}/EMA_value", threshold, TOLERANCE[dtype], batch)
            mask = QuantileThreshold(threshold, 1_000_000).mask(roots)
            golden.agrees(f"{name}/mask", mask.view(3, 4), 0, batch)
        ((matched.loss * mask).mean()).backward()
        compare_outcome(golden, name, batch, subject, items, matched, mask)
        compare_gradients(golden, name, batch, trained, dtype)


def reference_threshold(before: float | None, value: float, batch: int) -> float:
    if before is None:
        return value
    return (before + value) / 2 if batch == 1 else 0.9 * before + 0.1 * value


def loss_items(golden: Golden, subject: Any, batch: int, name: str, dtype: torch.dtype, dropped: bool) -> Any:
    """Adjoints a_k at the batch's indices (without dropout, as in the reference), and base predictions."""
    problem, indices = subject.problem, golden[f"in/batch{batch}/indices_t"]
    states = golden[f"in/batch{batch}/x_t"].to(dtype)
    given = conditioning(
        golden[f"in/batch{batch}/prompt_embeds"].to(dtype), golden["in/negative_prompt_embeds"].to(dtype)
    )
    golden.agrees(f"in/batch{batch}/std_dev_t", STEPS.sigma[indices], TOLERANCE[torch.float64])
    offset = states[:, -1] - golden["in/c"].to(dtype)
    golden.agrees(f"{name}/reward_mean", -0.5 * offset.square().flatten(1).sum(1).mean(), TOLERANCE[dtype], batch)
    lowest = int(indices.min())
    found = adjoints(problem.base(given, problem.adjoint_guidance), states, 0.02 * offset, lowest)
    key = f"{name}/batch{batch}" if subject.recipe.guidance.guidance_in_adjoint_computation else f"in/batch{batch}"
    golden.agrees(f"{key}/adjoint_at_indices", found.adjoints[:, indices], TOLERANCE[dtype])
    stored = experience(indices, given, dropped, states=states[:, indices], adjoints=found.adjoints[:, indices])
    items = stored.items(torch.arange(3), 0)
    predict = problem.base(items.conditioning(CPU).dropped(items.dropped), problem.control_guidance)
    with torch.no_grad():
        stored.base_predictions.copy_(predict(items.latent("states", CPU), items.indices).view_as(stored.states))
    return items


def compare_outcome(
    golden: Golden, name: str, batch: int, subject: Any, items: Any, matched: Any, mask: Tensor
) -> None:
    tolerance = TOLERANCE[mask.dtype]
    x = items.latent("states", CPU)
    given = items.conditioning(CPU).dropped(items.dropped)
    with torch.no_grad():
        prediction = subject.problem.finetuned(given, subject.problem.control_guidance)(x, items.indices)
    sigma = STEPS.sigma[items.indices].to(x).reshape(-1, 1, 1, 1)
    previous = (STEPS.mean(items.indices, x, prediction) / sigma).square().flatten(1).sum(1)
    key = f"{name}/batch{batch}/control_times_sqrt_dt"
    if key in golden:
        base = items.latent("base_predictions", CPU)
        table = STEPS.control_scale[items.indices].to(x).reshape(-1, 1, 1, 1)
        golden.agrees(key, control(prediction, base, table).view_as(golden[key]), tolerance)
    for stored, mean, value in (
        ("loss_evals", "loss", matched.loss.detach()),
        ("control_norms", "control_norm", matched.control_norm),
        ("target_norms", "AM_target_norm", matched.target_norm),
        ("prev_sample_norms", "prev_sample_norm", previous),
    ):
        golden.agrees(f"{name}/{stored}", value.view(3, 4), tolerance, batch)
        golden.agrees(f"{name}/{mean}", (value * mask).mean(), tolerance, batch)


def compare_gradients(golden: Golden, name: str, batch: int, trained: nn.Module, dtype: torch.dtype) -> None:
    gradients = {key: value.grad for key, value in trained.named_parameters() if value.grad is not None}
    norm = torch.stack([value.norm() for value in gradients.values()]).norm()
    golden.agrees(f"{name}/total_grad_norm", norm, TOLERANCE[dtype], batch)
    for key, value in gradients.items():
        stored = f"{name}/batch{batch}/grad/{key}"
        if stored in golden:
            golden.agrees(stored, value, TOLERANCE[dtype])
