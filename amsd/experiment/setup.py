"""From a recipe to a control problem on a device."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from amsd.diffusion.agreement import require_agreement
from amsd.diffusion.families.base import Family
from amsd.diffusion.finite import require_finite_images
from amsd.diffusion.loading import EMBEDDED, load_family
from amsd.diffusion.noise import normal
from amsd.diffusion.parameterizations import build_policy
from amsd.diffusion.policy import Policy
from amsd.diffusion.rollout import rollout
from amsd.diffusion.texts import ReadPrompts, send_away
from amsd.errors import UsageError
from amsd.evaluation.identity import pipeline_identity
from amsd.evaluation.protocol import sampler_for
from amsd.experiment.fsdp import USES_FSDP, forget_launch_setting, plugin
from amsd.recipe import Recipe
from amsd.rewards.calling import call
from amsd.rewards.combination import WeightedReward
from amsd.training import heartbeat
from amsd.training.chunks import SCALE, ChunkSize, fixed_micro_batch, in_chunks
from amsd.training.problem import ControlProblem

_LOG = logging.getLogger(__name__)

#: Samples of the base model that the standard deviation of a normalized reward is measured on.
SCALE_SAMPLES = 64


_LAUNCH_SETTINGS = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "The batch is optimizer.prompts_per_step, whatever the micro-batch.",
    USES_FSDP: "The recipe says whether networks are divided: training.fsdp = true.",
    "ACCELERATE_USE_DEEPSPEED": "Processes hold whole copies of the network.",
    "ACCELERATE_USE_MEGATRON_LM": "Processes hold whole copies of the network.",
}
"""Variables of `accelerate launch`, and what stands in their place."""


def build_accelerator(recipe: Recipe) -> Accelerator:
    """The device and the processes of this run.

    Raises:
        UsageError: fp16 without an accelerator.
    """
    _require_plain_launch()
    precision = {"fp32": "no"}.get(recipe.model.precision, recipe.model.precision)
    # Without an accelerator, accelerate joins the processes of a launcher only if it is told to use the CPU.
    cpu = _use_cpu()
    fsdp = plugin(recipe, cpu)
    _forget_other_run(precision, fsdp is not None)
    accelerator = Accelerator(mixed_precision=precision, cpu=cpu, fsdp_plugin=fsdp)
    forget_launch_setting()
    heartbeat.begin()
    if accelerator.device.type == "cpu" and recipe.model.precision == "fp16":
        raise UsageError("model.precision = 'fp16' needs an accelerator; use fp32 (or bf16) on the CPU.")
    if accelerator.device.type == "cpu" and recipe.model.pretrained.startswith(EMBEDDED):
        _use_one_thread()
    # Both are set in either case: PyTorch itself lets convolutions use TF32.
    torch.backends.cuda.matmul.allow_tf32 = recipe.training.tf32
    torch.backends.cudnn.allow_tf32 = recipe.training.tf32
    _determine(recipe.training.deterministic)
    return accelerator


def _determine(wanted: bool) -> None:
    """Let GPUs use operations that give the same bits in every run; what has none of them warns and goes on."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first product is computed
    if wanted or torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(wanted, warn_only=True)


def _forget_other_run(precision: str, fsdp: bool) -> None:
    """Let one Python process run recipes of different precision and sharding: accelerate remembers the first one's.

    The group of processes, which is remembered apart from it, stays.
    """
    known = AcceleratorState._shared_state
    if known and (known.get("_mixed_precision") != precision or (known.get("fsdp_plugin") is not None) != fsdp):
        AcceleratorState._reset_state()


def _require_plain_launch() -> None:
    """Refuse settings of accelerate that would change gradients behind the recipe's back.

    Raises:
        UsageError: names the variable, its value and the way out.
    """
    plain = ("", "0", "1", "false", "no")
    for name, instead in _LAUNCH_SETTINGS.items():
        value = os.environ.get(name, "")
        allowed = ("", "1") if name.endswith("STEPS") else tuple(each for each in plain if each != "1")
        if value.lower() not in allowed:
            raise UsageError(f"{name} = {value!r} is not supported, because it changes gradients: unset it. {instead}")


def load_policy(recipe: Recipe, device: torch.device, checkpoint: Path | None = None) -> Policy:
    """The recipe's model with an unchanged policy, or with the weights of a checkpoint."""
    family = load_family(recipe.model)
    family.check_recipe(recipe)
    policy = build_policy(family, recipe.model)
    if checkpoint is not None:
        policy.load(checkpoint)
    policy.to(device)
    return policy


def _use_cpu() -> bool:
    """Whether to stay on the CPU: without an accelerator, and on Apple's MPS, which nobody has tested.

    MPS has no float64, and AMSD_MPS=1 uses it all the same.
    """
    kind = torch.accelerator.current_accelerator()
    if kind is None or not torch.accelerator.is_available():
        return True
    if kind.type != "mps" or os.environ.get("AMSD_MPS") == "1":
        return False
    _LOG.warning("Apple's MPS is untested with amsd: this run uses the CPU. Set AMSD_MPS=1 to use MPS all the same.")
    return True


def _use_one_thread() -> None:
    """Networks as small as the embedded model's lose more to a second thread's waiting than it computes.

    Measured on two cores: 95 to 120 s of processor time for `amsd train shapes` with one thread, 426 s with two while
    the other core was busy. The user's OMP_NUM_THREADS wins.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


@dataclass(frozen=True)
class Identified:
    """An unchanged policy, and the hash of the model it came from (taken before adapters were added)."""

    policy: Policy
    base_weights: str


def require_samplers(family: Family, recipe: Recipe, evaluates: bool) -> None:
    """Check that the sampler of training, and those of evaluation where one is made, can be had.

    Raises:
        UsageError: the model's scheduler has no such sampler, or too few steps; the key is named.
    """
    family.check_recipe(recipe)
    family.steps(recipe.schedule)
    for setting in recipe.evaluation_settings if evaluates else ():
        sampler_for(setting, family, recipe.schedule)


def load_identified(recipe: Recipe, device: torch.device) -> Identified:
    """The recipe's model, for evaluation: its results are known by its weights."""
    family = load_family(recipe.model)
    family.check_recipe(recipe)
    weights = pipeline_identity(family.pipeline)
    policy = build_policy(family, recipe.model)
    policy.to(device)
    return Identified(policy, weights)


def build_problem(recipe: Recipe, accelerator: Accelerator, policy: Policy, prompts: Sequence[str]) -> ControlProblem:
    """Everything that a method computes with; `prompts` are those a normalized reward is measured on."""
    device = accelerator.device
    steps = policy.family.steps(recipe.schedule)
    with policy.sampling(base=True):
        require_agreement(policy.family)
    if recipe.training.compile:
        policy.compile()
    if recipe.training.gradient_checkpointing:
        policy.checkpoint_gradients()
        policy.pipeline.vae.enable_gradient_checkpointing()
    reward = WeightedReward.from_recipe(recipe.reward, recipe.code).to(device)
    _rehearse(reward, policy.family, prompts, device, recipe.method.needs_reward_gradient)
    problem = ControlProblem(
        recipe, policy.family, policy, steps, reward, device, reward.groupwise, _reader(recipe, policy.family)
    )
    if not reward.unmeasured:
        return problem
    scales = _base_standard_deviations(problem, reward, prompts)
    _LOG.info("base standard deviations of normalized rewards: %s", scales)
    return replace(problem, reward=reward.scaled(scales))


def _reader(recipe: Recipe, family: Family) -> ReadPrompts | None:
    """With `training.offload_text_encoders`, what encodes prompts from now on; the encoders have left the device."""
    if not recipe.training.offload_text_encoders:
        return None
    send_away(family)
    guided = recipe.guidance.guidance_scale != 1
    return ReadPrompts(family, recipe.guidance.negative_prompt if guided else "")


def _rehearse(
    reward: WeightedReward, family: Family, prompts: Sequence[str], device: torch.device, gradient: bool
) -> None:
    """Try the rewards on two pictures of noise in the size of the model's."""
    images = torch.rand((2, 3, *family.size), generator=torch.Generator().manual_seed(0))
    last = prompts[0] if reward.groupwise else prompts[-1]
    reward.rehearse(images.to(device), [prompts[0], last], gradient)


@torch.no_grad()
def _base_standard_deviations(
    problem: ControlProblem, reward: WeightedReward, prompts: Sequence[str]
) -> dict[str, float]:
    """Standard deviation of each unmeasured term over samples of the base model, the same on every process."""
    size, each, count = fixed_micro_batch(problem.recipe), 1, SCALE_SAMPLES
    if reward.groupwise:  # whole groups, as training has them
        size = each = problem.recipe.method.samples_per_prompt
        count = max(2, SCALE_SAMPLES // size) * size
    chosen = [prompts[index // each % len(prompts)] for index in range(count)]
    scores: dict[str, list[torch.Tensor]] = {name: [] for name in reward.unmeasured}
    terms = {term.reward.name: term.reward for term in reward.terms}

    def measure(indices: Sequence[int]) -> dict[str, torch.Tensor]:
        batch = [chosen[index] for index in indices]
        keys = [(problem.recipe.training.seed, "scale", index) for index in indices]
        shape = (len(problem.steps) + 1, *problem.family.latent_shape)
        noise = normal(keys, shape, problem.device, torch.float32)
        predict = problem.base(problem.encode(batch), problem.recipe.guidance.guidance_scale)
        images = problem.family.decode(rollout(predict, problem.steps, noise).terminal).clamp(0, 1)
        require_finite_images(images, batch)
        return {name: call(terms[name], images, batch).cpu() for name in scores}

    whole = reward.groupwise or problem.policy.sharded
    for found in in_chunks(range(count), ChunkSize(size, size, SCALE, fixed=whole), measure):
        for name, values in found.items():
            scores[name].append(values)
    return {name: float(torch.cat(values).std()) for name, values in scores.items()}
